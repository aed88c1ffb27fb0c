package main

import (
	"context"
	"errors"
	"fmt"

	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
)

// waitReady follows a service until this generation of it is ready or has
// failed. The error has the cause.
func waitReady(ctx context.Context, c *client, s *v1.Service, timeout time.Duration, p *progress) (*v1.Service, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	last := s
	_, err := watchtools.UntilWithSync(ctx, serviceWatch(c, s), &v1.Service{}, nil, func(e watch.Event) (bool, error) {
		now, ok := e.Object.(*v1.Service)
		if !ok || now.UID != s.UID {
			return false, nil
		}
		if e.Type == watch.Deleted {
			return false, fmt.Errorf("service %q was deleted while it was being deployed", s.Name)
		}
		last = now
		ready := now.Status.GetCondition(v1.ServiceConditionReady)
		if now.Status.ObservedGeneration < s.Generation || ready == nil {
			return false, nil
		}
		p.step(fmt.Sprintf("Waiting for revision %s", now.Status.LatestCreatedRevisionName))
		if ready.IsFalse() {
			return false, coded(exitNotReady, fmt.Errorf("service %q is not ready: %s", s.Name, causeOf(ctx, c, now)))
		}
		return ready.IsTrue(), nil
	})
	if err != nil && (wait.Interrupted(err) || errors.Is(err, context.DeadlineExceeded)) {
		err = coded(exitNotReady, fmt.Errorf("service %q was not ready within %s: %s (`skep describe %s` shows more)",
			s.Name, timeout, causeOf(context.WithoutCancel(ctx), c, last), s.Name))
	}
	return last, err
}

// causeOf takes the reason from the newest revision, whose words are plainer
// than those of the service.
func causeOf(ctx context.Context, c *client, s *v1.Service) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if name := s.Status.LatestCreatedRevisionName; name != "" {
		rev, err := c.knative.ServingV1().Revisions(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			if r := rev.Status.GetCondition(v1.RevisionConditionReady); r != nil && r.Message != "" {
				return r.Reason + ": " + r.Message
			}
		}
	}
	if r := s.Status.GetCondition(v1.ServiceConditionReady); r != nil && r.Message != "" {
		return r.Reason + ": " + r.Message
	}
	return "no cause is known yet"
}

func serviceWatch(c *client, s *v1.Service) cache.ListerWatcher {
	services := c.knative.ServingV1().Services(s.Namespace)
	only := fields.OneTermEqualSelector("metadata.name", s.Name).String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return services.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return services.Watch(ctx, o)
		},
	}
}
