package serving

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
	"knative.dev/pkg/kmeta"
	apiserving "knative.dev/serving/pkg/apis/serving"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/gateway"
)

// keepRevisions is how many superseded revisions of a service stay as a record.
const keepRevisions = 3

// reconcile brings one service to what its spec says.
func (c *Controller) reconcile(ctx context.Context, key cache.ObjectName) error {
	// From the server: the cache may lag behind our own status, and each
	// conflict would cost a retry.
	s, err := c.cfg.Knative.ServingV1().Services(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && s.DeletionTimestamp != nil {
		c.remove(key)
		return nil
	}
	if err != nil {
		return err
	}
	sv := c.servedOf(key, s.UID)
	sv.mu.Lock()
	defer sv.mu.Unlock()
	ch, err := c.ensureChildren(ctx, s)
	if err != nil {
		return err
	}
	rev, err := c.ensureRevision(ctx, s, ch.configuration)
	if err != nil {
		return err
	}
	if sv.rollout == nil || sv.rollout.revision != rev.Name {
		sv.rollout.stop()
		sv.rollout = nil
		if sv.routed != rev.Name { // else: back to what takes the requests
			sv.rollout = c.startRollout(ctx, key, sv, rev)
		}
	}
	return c.updateStatuses(ctx, s, ch, rev, sv.routed)
}

// ensureRevision returns the revision of the service's present template,
// which it makes if the newest one differs.
func (c *Controller) ensureRevision(ctx context.Context, s *v1.Service, cfg *v1.Configuration) (*v1.Revision, error) {
	client := c.cfg.Knative.ServingV1().Revisions(s.Namespace)
	want := revisionOf(s, cfg)
	// The newest from the server, not from the cache, which may lag behind
	// our own writes.
	name := cfg.Status.LatestCreatedRevisionName
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
	if !metav1.IsControlledBy(there, cfg) || !sameTemplate(there, want) {
		return nil, fmt.Errorf("revision name %q is taken by another revision: choose another spec.template.metadata.name", want.Name)
	}
	return there, nil
}

// revisionOf is the revision of a service's template, named as Knative does.
func revisionOf(s *v1.Service, cfg *v1.Configuration) *v1.Revision {
	t := &cfg.Spec.Template
	r := &v1.Revision{ObjectMeta: *t.ObjectMeta.DeepCopy(), Spec: *t.Spec.DeepCopy()}
	if r.Name == "" {
		r.Name = kmeta.ChildName(s.Name, fmt.Sprintf("-%05d", cfg.Generation))
	}
	r.Namespace = s.Namespace
	metav1.SetMetaDataAnnotation(&r.ObjectMeta, templateAnnotation, templateHash(t))
	r.Labels = kmeta.UnionMaps(r.Labels, map[string]string{
		apiserving.ServiceLabelKey:                 s.Name,
		apiserving.ConfigurationLabelKey:           s.Name,
		apiserving.ServiceUIDLabelKey:              string(s.UID),
		apiserving.ConfigurationUIDLabelKey:        string(cfg.UID),
		apiserving.ConfigurationGenerationLabelKey: fmt.Sprint(cfg.Generation),
	})
	r.OwnerReferences = []metav1.OwnerReference{*kmeta.NewControllerRef(cfg)}
	return r
}

// templateAnnotation holds the hash of the template a revision was made from.
// Comparing the objects would trip over defaults, which differ by version.
const templateAnnotation = "skep.dev/template"

func sameTemplate(have, want *v1.Revision) bool {
	return have.Annotations[templateAnnotation] == want.Annotations[templateAnnotation]
}

// templateHash is of what a user can say of a revision.
func templateHash(t *v1.RevisionTemplateSpec) string {
	b, err := json.Marshal(t)
	if err != nil {
		return "" // cannot be: it came from JSON
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
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
		err := c.cfg.Knative.ServingV1().Revisions(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{})
		if ignoreGone(err) != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("remove old revision", "namespace", r.Namespace, "revision", r.Name, "error", err)
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
		t, err := c.activate(ctx, key, rev)
		if err != nil {
			c.cfg.Log.Warn("resume service", "namespace", s.Namespace, "service", s.Name, "error", err)
			continue
		}
		sv := c.servedOf(key, s.UID)
		sv.routed, sv.tenant = name, t
	}
	return c.dropHolds(ctx)
}

// dropHolds lets go of images that a killed process held for revisions that
// are not deployed. A roll-out that begins again holds its own again.
func (c *Controller) dropHolds(ctx context.Context) error {
	var errs []error
	for _, holder := range c.cfg.Images.Holders() {
		namespace, name, _ := strings.Cut(holder, "/")
		if c.tenantOf(gateway.RevisionKey{Namespace: namespace, Name: name}) == nil {
			errs = append(errs, c.cfg.Images.Unhold(ctx, holder))
		}
	}
	return errors.Join(errs...)
}

// remove ends all that runs for a service that is gone. A roll-out ends by
// itself what it has begun.
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
	sv.rollout.stop()
	if t := sv.tenant; t != nil {
		c.work.Go(func() { c.retire(t) })
	}
}
