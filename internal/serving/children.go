package serving

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/kmeta"
	"knative.dev/pkg/ptr"
	apiserving "knative.dev/serving/pkg/apis/serving"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
)

// children are the objects that Knative has below a service, so that `kn`
// and kubectl find what they expect, and deletion cascades.
type children struct {
	configuration *v1.Configuration
	route         *v1.Route
}

func childMeta(s *v1.Service) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: s.Name, Namespace: s.Namespace,
		Labels: kmeta.UnionMaps(s.Labels, map[string]string{
			apiserving.ServiceLabelKey: s.Name, apiserving.ServiceUIDLabelKey: string(s.UID),
		}),
		Annotations:     kmeta.FilterMap(s.Annotations, func(k string) bool { return k == lastApplied }),
		OwnerReferences: []metav1.OwnerReference{*kmeta.NewControllerRef(s)},
	}
}

// lastApplied is kubectl's copy of what was applied; it is of no use below.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// ensureChildren makes or changes the configuration and the route.
func (c *Controller) ensureChildren(ctx context.Context, s *v1.Service) (*children, error) {
	configuration, err := c.ensureConfiguration(ctx, s)
	if err != nil {
		return nil, err
	}
	route, err := c.ensureRoute(ctx, s)
	if err != nil {
		return nil, err
	}
	return &children{configuration, route}, nil
}

func errNotOwned(kind, name string) error {
	return fmt.Errorf("there is a %s %q that does not belong to the service: delete it or name the service otherwise", kind, name)
}

func (c *Controller) ensureConfiguration(ctx context.Context, s *v1.Service) (*v1.Configuration, error) {
	client := c.cfg.Knative.ServingV1().Configurations(s.Namespace)
	want := &v1.Configuration{ObjectMeta: childMeta(s), Spec: *s.Spec.ConfigurationSpec.DeepCopy()}
	there, err := client.Get(ctx, s.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return client.Create(ctx, want, metav1.CreateOptions{})
	case err != nil:
		return nil, err
	case !metav1.IsControlledBy(there, s):
		return nil, errNotOwned("configuration", s.Name)
	case equality.Semantic.DeepEqual(there.Spec, want.Spec):
		return there, nil
	}
	changed := there.DeepCopy()
	changed.Spec = want.Spec
	return client.Update(ctx, changed, metav1.UpdateOptions{})
}

func (c *Controller) ensureRoute(ctx context.Context, s *v1.Service) (*v1.Route, error) {
	client := c.cfg.Knative.ServingV1().Routes(s.Namespace)
	want := &v1.Route{ObjectMeta: childMeta(s), Spec: v1.RouteSpec{Traffic: []v1.TrafficTarget{{
		ConfigurationName: s.Name, LatestRevision: ptr.Bool(true), Percent: ptr.Int64(100),
	}}}}
	there, err := client.Get(ctx, s.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return client.Create(ctx, want, metav1.CreateOptions{})
	case err != nil:
		return nil, err
	case !metav1.IsControlledBy(there, s):
		return nil, errNotOwned("route", s.Name)
	}
	return there, nil
}

// updateStatuses writes what has changed of the three statuses.
func (c *Controller) updateStatuses(ctx context.Context, s *v1.Service, ch *children, created *v1.Revision, routed string) error {
	serving := c.cfg.Knative.ServingV1()
	cs := configurationStatus(ch.configuration, created, routed)
	if !equality.Semantic.DeepEqual(cs, ch.configuration.Status) {
		changed := ch.configuration.DeepCopy()
		changed.Status = cs
		if _, err := serving.Configurations(s.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{}); ignoreGone(err) != nil {
			return fmt.Errorf("configuration status: %w", err)
		}
	}
	rs := routeStatus(ch.route, created, routed, c.cfg.Domain)
	if !equality.Semantic.DeepEqual(rs, ch.route.Status) {
		changed := ch.route.DeepCopy()
		changed.Status = rs
		if _, err := serving.Routes(s.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{}); ignoreGone(err) != nil {
			return fmt.Errorf("route status: %w", err)
		}
	}
	ss := serviceStatus(s, &cs, &rs)
	if equality.Semantic.DeepEqual(ss, s.Status) {
		return nil
	}
	changed := s.DeepCopy()
	changed.Status = ss
	_, err := serving.Services(s.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	return ignoreGone(err)
}

// ignoreGone takes an object that was deleted meanwhile for no error. A
// conflict is one: the queue tries again with a fresh copy.
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
