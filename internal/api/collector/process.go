package collector

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"

	"github.com/skep-dev/skep/internal/api/core"
)

var namespaces = corev1.SchemeGroupVersion.WithResource("namespaces")

// process does for one object what is to be done now. It reports whether it
// must look again though nothing may change that it would be told of.
func (c *Collector) process(ctx context.Context, uid types.UID) (again bool, err error) {
	known := c.graph.get(uid)
	if known == nil {
		return false, nil
	}
	// The graph may be behind: decide on the object as it is now.
	live, err := c.objects(known).Get(ctx, known.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s %s: %w", known.resource.Resource, known.name, err)
	}
	if live.UID != uid {
		return false, nil // another of the same name
	}
	n := nodeOf(known.resource, live)
	switch {
	case n.deleting && n.resource == namespaces && slices.Contains(n.finalizers, core.Finalizer):
		return c.empty(ctx, n, live)
	case n.deleting && slices.Contains(n.finalizers, metav1.FinalizerOrphanDependents):
		return false, c.orphan(ctx, n, live)
	case n.deleting && slices.Contains(n.finalizers, metav1.FinalizerDeleteDependents):
		return false, c.foreground(ctx, n, live)
	case n.deleting || len(n.owners) == 0:
		return false, nil
	}
	return false, c.background(ctx, n, live)
}

// background deletes an object that has lost all its owners, and takes lost
// owners off an object that has others.
func (c *Collector) background(ctx context.Context, n *node, live *metav1.PartialObjectMetadata) error {
	var keep []metav1.OwnerReference
	waiting := false
	for _, owner := range n.owners {
		state, err := c.ownerState(ctx, n, owner)
		if err != nil {
			return err
		}
		switch state {
		case ownerThere:
			keep = append(keep, owner)
		case ownerWaits:
			waiting = true
		}
	}
	if len(keep) == len(n.owners) {
		return nil
	}
	if len(keep) > 0 {
		return c.patch(ctx, n, live, map[string]any{"ownerReferences": keep})
	}
	policy := metav1.DeletePropagationBackground
	switch {
	case slices.Contains(n.finalizers, metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case slices.Contains(n.finalizers, metav1.FinalizerDeleteDependents),
		waiting && len(c.graph.owned(n.uid)) > 0:
		policy = metav1.DeletePropagationForeground
	}
	err := c.objects(n).Delete(ctx, n.name, metav1.DeleteOptions{
		PropagationPolicy: &policy,
		// As it was when it was found to be garbage: somebody may adopt it.
		Preconditions: &metav1.Preconditions{UID: &n.uid, ResourceVersion: &live.ResourceVersion},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s %s/%s, whose owner is gone: %w", n.resource.Resource, n.namespace, n.name, err)
	}
	return nil
}

type ownerState int

const (
	ownerThere ownerState = iota // or it cannot be told: better keep than lose
	ownerWaits                   // is being deleted and waits for its dependents
	ownerGone
)

func (c *Collector) ownerState(ctx context.Context, n *node, owner metav1.OwnerReference) (ownerState, error) {
	gv, err := schema.ParseGroupVersion(owner.APIVersion)
	if err != nil {
		return ownerThere, nil //nolint:nilerr // not a kind that could be gone
	}
	c.mu.Lock()
	k := c.kinds[schema.GroupKind{Group: gv.Group, Kind: owner.Kind}]
	c.mu.Unlock()
	if k == nil || k.namespaced && n.namespace == "" {
		return ownerThere, nil
	}
	namespace := n.namespace
	if !k.namespaced {
		namespace = ""
	}
	live, err := c.in(k.resource, namespace).Get(ctx, owner.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return ownerGone, nil
	case err != nil:
		return ownerThere, fmt.Errorf("read owner %s %s: %w", owner.Kind, owner.Name, err)
	case live.UID != owner.UID:
		return ownerGone, nil
	case live.DeletionTimestamp != nil && slices.Contains(live.Finalizers, metav1.FinalizerDeleteDependents):
		return ownerWaits, nil
	}
	return ownerThere, nil
}

// foreground deletes an object's dependents, and lets it go when those that
// block it are gone.
func (c *Collector) foreground(ctx context.Context, n *node, live *metav1.PartialObjectMetadata) error {
	blocked := false
	for _, dependent := range c.graph.owned(n.uid) {
		for _, owner := range dependent.owners {
			if owner.UID == n.uid && owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion {
				blocked = true
			}
		}
		if !dependent.deleting {
			c.queue.Add(dependent.uid) // it finds its owner waiting
		}
	}
	if blocked {
		return nil // each dependent's end brings us back
	}
	return c.dropFinalizer(ctx, n, live, metav1.FinalizerDeleteDependents)
}

// orphan takes an object off its dependents' owners, and lets it go.
func (c *Collector) orphan(ctx context.Context, n *node, live *metav1.PartialObjectMetadata) error {
	for _, dependent := range c.graph.owned(n.uid) {
		current, err := c.objects(dependent).Get(ctx, dependent.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s %s: %w", dependent.resource.Resource, dependent.name, err)
		}
		left := slices.DeleteFunc(slices.Clone(current.OwnerReferences), func(o metav1.OwnerReference) bool { return o.UID == n.uid })
		if current.UID != dependent.uid || len(left) == len(current.OwnerReferences) {
			continue
		}
		if err := c.patch(ctx, dependent, current, map[string]any{"ownerReferences": left}); err != nil {
			return err
		}
	}
	return c.dropFinalizer(ctx, n, live, metav1.FinalizerOrphanDependents)
}

// empty deletes all that is in a namespace, and lets it go when it is empty.
func (c *Collector) empty(ctx context.Context, n *node, live *metav1.PartialObjectMetadata) (again bool, err error) {
	c.mu.Lock()
	var inside []schema.GroupVersionResource
	for _, k := range c.kinds {
		if k.namespaced {
			inside = append(inside, k.resource)
		}
	}
	c.mu.Unlock()
	policy := metav1.DeletePropagationBackground
	for _, resource := range inside {
		objects := c.in(resource, n.name)
		if err := objects.DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: &policy}, metav1.ListOptions{}); err != nil {
			return false, fmt.Errorf("delete %s in namespace %s: %w", resource.Resource, n.name, err)
		}
		rest, err := objects.List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			return false, fmt.Errorf("list %s in namespace %s: %w", resource.Resource, n.name, err)
		}
		again = again || len(rest.Items) > 0
	}
	if again {
		return true, nil // something there has a finalizer
	}
	return false, c.dropFinalizer(ctx, n, live, core.Finalizer)
}

func (c *Collector) dropFinalizer(ctx context.Context, n *node, live *metav1.PartialObjectMetadata, finalizer string) error {
	left := slices.DeleteFunc(slices.Clone(live.Finalizers), func(f string) bool { return f == finalizer })
	return c.patch(ctx, n, live, map[string]any{"finalizers": left})
}

// patch changes metadata, if the object is still what was looked at.
func (c *Collector) patch(ctx context.Context, n *node, live *metav1.PartialObjectMetadata, change map[string]any) error {
	change["uid"], change["resourceVersion"] = live.UID, live.ResourceVersion
	raw, err := json.Marshal(map[string]any{"metadata": change})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	_, err = c.objects(n).Patch(ctx, n.name, types.MergePatchType, raw, metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("patch metadata of %s %s/%s: %w", n.resource.Resource, n.namespace, n.name, err)
	}
	return nil
}

func (c *Collector) objects(n *node) metadata.ResourceInterface { return c.in(n.resource, n.namespace) }

func (c *Collector) in(resource schema.GroupVersionResource, namespace string) metadata.ResourceInterface {
	if namespace == "" {
		return c.client.Resource(resource)
	}
	return c.client.Resource(resource).Namespace(namespace)
}
