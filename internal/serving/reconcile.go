package serving

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	"knative.dev/pkg/kmeta"
	apiserving "knative.dev/serving/pkg/apis/serving"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/gateway"
)

// keepRevisions is how many superseded revisions of a service stay as a record.
const keepRevisions = 3

// reconcile brings one service to what its spec says.
func (c *Controller) reconcile(ctx context.Context, key cache.ObjectName) error {
	s, err := c.services.Services(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) || err == nil && s.DeletionTimestamp != nil {
		c.remove(key)
		return nil
	}
	if err != nil {
		return err
	}
	sv := c.servedOf(key)
	sv.mu.Lock()
	defer sv.mu.Unlock()
	rev, err := c.ensureRevision(ctx, s)
	if err != nil {
		return err
	}
	if sv.routed != rev.Name && (sv.rollout == nil || sv.rollout.revision != rev.Name) {
		sv.rollout.stop()
		sv.rollout = c.startRollout(ctx, key, sv, rev)
	}
	return c.updateStatus(ctx, s, rev, sv.routed)
}

// ensureRevision returns the revision of the service's present template,
// which it makes if the newest one differs.
func (c *Controller) ensureRevision(ctx context.Context, s *v1.Service) (*v1.Revision, error) {
	client := c.cfg.Knative.ServingV1().Revisions(s.Namespace)
	want := revisionOf(s)
	// The newest from the server, not from the cache, which may lag behind
	// our own writes.
	name := s.Status.LatestCreatedRevisionName
	if name != "" {
		newest, err := client.Get(ctx, name, metav1.GetOptions{})
		if err == nil && sameTemplate(newest, want) {
			return newest, nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	made, err := client.Create(ctx, want, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		if err == nil {
			c.pruneRevisions(ctx, s, made.Name)
		}
		return made, err
	}
	there, err := client.Get(ctx, want.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if !metav1.IsControlledBy(there, s) || !sameTemplate(there, want) {
		return nil, fmt.Errorf("revision name %q is taken by another revision: choose another spec.template.metadata.name", want.Name)
	}
	return there, nil
}

// revisionOf is the revision of a service's template, named as Knative does.
func revisionOf(s *v1.Service) *v1.Revision {
	r := &v1.Revision{ObjectMeta: *s.Spec.Template.ObjectMeta.DeepCopy(), Spec: *s.Spec.Template.Spec.DeepCopy()}
	if r.Name == "" {
		r.Name = kmeta.ChildName(s.Name, fmt.Sprintf("-%05d", s.Generation))
	}
	r.Namespace = s.Namespace
	r.Labels = kmeta.UnionMaps(r.Labels, map[string]string{
		apiserving.ServiceLabelKey:                 s.Name,
		apiserving.ConfigurationLabelKey:           s.Name,
		apiserving.ServiceUIDLabelKey:              string(s.UID),
		apiserving.ConfigurationGenerationLabelKey: fmt.Sprint(s.Generation),
	})
	r.OwnerReferences = []metav1.OwnerReference{*kmeta.NewControllerRef(s)}
	return r
}

// sameTemplate compares what a user can say of a revision.
func sameTemplate(have, want *v1.Revision) bool {
	for k, v := range want.Annotations {
		if have.Annotations[k] != v {
			return false
		}
	}
	for k := range have.Annotations {
		if _, ok := want.Annotations[k]; !ok && !slices.Contains([]string{apiserving.CreatorAnnotation, apiserving.UpdaterAnnotation}, k) {
			return false
		}
	}
	wanted := want.DeepCopy()
	wanted.SetDefaults(context.Background())
	return equality.Semantic.DeepEqual(have.Spec, wanted.Spec)
}

// updateStatus writes the service's status if it has changed.
func (c *Controller) updateStatus(ctx context.Context, s *v1.Service, created *v1.Revision, routed string) error {
	client := c.cfg.Knative.ServingV1().Services(s.Namespace)
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		now := serviceStatus(s, created, routed, c.cfg.Domain)
		if equality.Semantic.DeepEqual(now, s.Status) {
			return nil
		}
		changed := s.DeepCopy()
		changed.Status = now
		_, err := client.UpdateStatus(ctx, changed, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			return nil // deleted meanwhile
		}
		if apierrors.IsConflict(err) {
			if fresh, getErr := client.Get(ctx, s.Name, metav1.GetOptions{}); getErr == nil && fresh.Generation == s.Generation {
				s = fresh
			} else {
				return nil // a newer generation is in the queue
			}
		}
		return err
	})
}

// pruneRevisions removes old revisions of a service from the record.
func (c *Controller) pruneRevisions(ctx context.Context, s *v1.Service, newest string) {
	all, err := c.revisions.Revisions(s.Namespace).List(labels.SelectorFromSet(labels.Set{apiserving.ServiceUIDLabelKey: string(s.UID)}))
	if err != nil {
		return
	}
	slices.SortFunc(all, func(a, b *v1.Revision) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	kept := 0
	for _, r := range all {
		if r.Name == newest || r.Name == s.Status.LatestReadyRevisionName {
			continue
		}
		if kept++; kept <= keepRevisions {
			continue
		}
		if err := c.cfg.Knative.ServingV1().Revisions(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{}); err == nil {
			_ = c.cfg.Logs.Remove(r.Namespace, r.Name)
		}
	}
}

// resume brings back, at the start, the revisions that took requests before.
// They were proved once and need not be again.
func (c *Controller) resume(ctx context.Context) error {
	all, err := c.services.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, s := range all {
		name := s.Status.LatestReadyRevisionName
		if name == "" || s.DeletionTimestamp != nil {
			continue
		}
		rev, err := c.revisions.Revisions(s.Namespace).Get(name)
		if err != nil {
			c.cfg.Log.Warn("the ready revision of a service is gone", "namespace", s.Namespace, "service", s.Name, "revision", name, "error", err)
			continue
		}
		key := cache.ObjectName{Namespace: s.Namespace, Name: s.Name}
		if err := c.activate(ctx, key, rev); err != nil {
			c.cfg.Log.Warn("resume service", "namespace", s.Namespace, "service", s.Name, "error", err)
			continue
		}
		c.servedOf(key).routed = name
	}
	return nil
}

// remove ends all that runs for a service that is gone.
func (c *Controller) remove(key cache.ObjectName) {
	c.mu.Lock()
	sv := c.served[key]
	delete(c.served, key)
	c.mu.Unlock()
	if sv == nil {
		return
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	c.cfg.Router.RemoveRoute(c.cfg.Domain.host(key.Namespace, key.Name))
	c.cfg.Router.RemoveRoute(localHost(key.Namespace, key.Name))
	names := map[string]bool{}
	if sv.rollout != nil {
		sv.rollout.stop()
		names[sv.rollout.revision] = true
	}
	if sv.routed != "" {
		names[sv.routed] = true
	}
	for name := range names {
		rev := gateway.RevisionKey{Namespace: key.Namespace, Name: name}
		c.work.Go(func() {
			c.retire(rev)
			_ = c.cfg.Logs.Remove(rev.Namespace, rev.Name)
		})
	}
}

// retire drains a revision and forgets it.
func (c *Controller) retire(key gateway.RevisionKey) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	// Requests that had found the route before it was changed may still
	// come in; let the last of them be served.
	for quiet := 0; quiet < 3 && ctx.Err() == nil; {
		if st, ok := c.cfg.Router.Stats(key); !ok || st.InFlight+st.Queued == 0 {
			quiet++
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := c.cfg.Fleet.Remove(ctx, key); err != nil {
		c.cfg.Log.Warn("retire revision", "namespace", key.Namespace, "revision", key.Name, "error", err)
	}
	c.cfg.Router.RemoveRevision(key)
	c.unpin(key)
}

const drainTimeout = 10 * time.Minute
