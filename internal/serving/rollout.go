package serving

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
)

// Reasons of a revision that is not ready, beside those of package node.
const (
	reasonInvalid  = "InvalidSpec"
	reasonDeadline = "ProgressDeadlineExceeded"
)

// Pauses before a roll-out that failed is tried again: the registry may be back,
// or what the function needs.
const (
	firstRetry = 10 * time.Second
	maxRetry   = 5 * time.Minute
)

// worthRetry tells whether a roll-out may succeed another time without a change
// of the service.
func worthRetry(err error) bool {
	var se *node.StartError
	if !errors.As(err, &se) {
		return err != nil
	}
	return se.Reason != reasonInvalid && se.Reason != node.ReasonNoDriver && se.Reason != node.ReasonSnapshot
}

// lateError is how long a start that is over its deadline may take to say so.
const lateError = 10 * time.Second

// resumeTimeout bounds the search for an image that should be on the node,
// while the daemon starts.
const resumeTimeout = 10 * time.Second

// rollout proves a new revision and moves the traffic to it.
type rollout struct {
	revision string
	cancel   context.CancelFunc
}

func (r *rollout) stop() {
	if r != nil {
		r.cancel()
	}
}

// startRollout begins in the background; the service is looked at again when
// it is over. The caller holds sv.mu.
func (c *Controller) startRollout(ctx context.Context, key cache.ObjectName, sv *served, rev *v1.Revision) *rollout {
	ctx, cancel := context.WithCancel(ctx)
	r := &rollout{revision: rev.Name, cancel: cancel}
	c.work.Go(func() {
		defer cancel()
		for pause := firstRetry; ; pause = min(2*pause, maxRetry) {
			t, err := c.prove(ctx, rev, pause > firstRetry)
			if ctx.Err() == nil && err == nil && c.takeOver(ctx, key, sv, r, rev, t) {
				c.queue.Add(key)
				return
			}
			// Failed, superseded, deleted or shutting down.
			if ctx.Err() == nil && err != nil {
				c.fail(ctx, rev, err)
			}
			c.queue.Add(key)
			if ctx.Err() != nil || !worthRetry(err) {
				c.work.Go(func() { c.retire(t) })
				return
			}
			c.retire(t)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	})
	return r
}

// prove fetches the image and starts the first instance. On error, too, there
// may be a tenant, for the caller to retire. While it is done again, the status
// goes on to tell the cause of the failure.
func (c *Controller) prove(ctx context.Context, rev *v1.Revision, again bool) (*tenant, error) {
	p, err := translate(rev, c.cfg.Defaults)
	if err != nil {
		return nil, &node.StartError{Reason: reasonInvalid, Err: err}
	}
	if !again {
		err = c.markRevision(ctx, rev, func(s *v1.RevisionStatus) {
			s.MarkContainerHealthyUnknown("Deploying", "")
			s.MarkResourcesAvailableUnknown("Deploying", "")
		})
		if err != nil {
			return nil, err
		}
	}
	late := fmt.Errorf("not ready within the progress deadline of %s", p.deadline)
	pulling, cancel := context.WithTimeoutCause(ctx, p.deadline, late)
	defer cancel()
	img, err := c.cfg.Images.Ensure(pulling, p.fleet.Launch.Image, p.alwaysPull)
	if err != nil {
		return nil, &node.StartError{Reason: node.ReasonImage, Err: err}
	}
	err = c.markRevision(ctx, rev, func(s *v1.RevisionStatus) {
		s.ContainerStatuses = []v1.ContainerStatus{{Name: rev.Spec.Containers[0].Name, ImageDigest: pinned(p.fleet.Launch.Image, img.Digest)}}
	})
	if err != nil {
		return nil, err
	}
	t, err := c.install(ctx, rev, p, img.Digest)
	if err != nil {
		return nil, &node.StartError{Reason: node.ReasonImage, Err: err}
	}
	if p.initial == 0 && p.fleet.Policy.MinScale == 0 {
		return t, nil
	}
	// The image is progress: the start has the deadline for itself, which the
	// node keeps. Its error says more than that time is up, so wait for it.
	ctx, cancel = context.WithTimeoutCause(ctx, p.deadline+lateError, late)
	defer cancel()
	err = c.cfg.Fleet.Ensure(ctx, p.gateway.Key)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		var se *node.StartError
		if !errors.As(err, &se) {
			return t, &node.StartError{Reason: reasonDeadline, Err: context.Cause(ctx)}
		}
	}
	return t, err
}

// activate makes a revision that was proved earlier take requests.
func (c *Controller) activate(ctx context.Context, key cache.ObjectName, rev *v1.Revision) (*tenant, error) {
	p, err := translate(rev, c.cfg.Defaults)
	if err != nil {
		return nil, err
	}
	st := rev.Status.ContainerStatuses
	if len(st) == 0 {
		return nil, fmt.Errorf("revision %s has no image in its status: it is proved again", rev.Name)
	}
	here, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	img, err := c.cfg.Images.Ensure(here, st[0].ImageDigest, false)
	if err != nil {
		return nil, err
	}
	t, err := c.install(ctx, rev, p, img.Digest)
	if err != nil {
		return nil, err
	}
	if err := c.route(key, t.key); err != nil {
		c.vacate(t)
		return nil, err
	}
	return t, nil
}

func (c *Controller) route(key cache.ObjectName, rev gateway.RevisionKey) error {
	return errors.Join(
		c.cfg.Router.SetRoute(c.cfg.Domain.host(key.Namespace, key.Name), rev),
		c.cfg.Router.SetRoute(localHost(key.Namespace, key.Name), rev))
}

// takeOver moves the traffic to a revision that was proved. It reports false
// if the roll-out is no longer wanted.
func (c *Controller) takeOver(ctx context.Context, key cache.ObjectName, sv *served, r *rollout, rev *v1.Revision, t *tenant) bool {
	markErr := c.markRevision(ctx, rev, func(s *v1.RevisionStatus) {
		s.MarkContainerHealthyTrue()
		s.MarkResourcesAvailableTrue()
		s.MarkActiveTrue()
	})
	if markErr != nil && ctx.Err() == nil {
		c.cfg.Log.Warn("write revision status", "revision", rev.Name, "error", markErr)
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.rollout != r || ctx.Err() != nil {
		return false
	}
	if err := c.route(key, t.key); err != nil {
		c.cfg.Log.Error("route service", "namespace", key.Namespace, "service", key.Name, "error", err)
		return false
	}
	if old := sv.tenant; old != nil {
		c.work.Go(func() { c.retire(old) })
	}
	sv.routed, sv.tenant = rev.Name, t
	c.event(rev, corev1.EventTypeNormal, "RevisionReady", fmt.Sprintf("Revision %q takes the traffic", rev.Name))
	return true
}

// fail writes the cause of a failed roll-out into conditions and an event.
func (c *Controller) fail(ctx context.Context, rev *v1.Revision, err error) {
	reason := node.ReasonSandbox
	var se *node.StartError
	if errors.As(err, &se) {
		reason = se.Reason
	}
	message := clip(err.Error(), 2048)
	c.cfg.Log.Warn("revision failed", "namespace", rev.Namespace, "revision", rev.Name, "reason", reason, "error", err)
	c.event(rev, corev1.EventTypeWarning, reason, message)
	markErr := c.markRevision(ctx, rev, func(s *v1.RevisionStatus) {
		switch reason {
		case node.ReasonSandbox, node.ReasonNoDriver, node.ReasonDisk:
			s.MarkContainerHealthyUnknown(reason, "")
			s.MarkResourcesAvailableFalse(reason, message)
		default:
			s.MarkResourcesAvailableTrue()
			s.MarkContainerHealthyFalse(reason, message)
		}
	})
	if markErr != nil && ctx.Err() == nil {
		c.cfg.Log.Warn("write revision status", "revision", rev.Name, "error", markErr)
	}
}

func (c *Controller) markRevision(ctx context.Context, rev *v1.Revision, mark func(*v1.RevisionStatus)) error {
	client := c.cfg.Knative.ServingV1().Revisions(rev.Namespace)
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		fresh, err := client.Get(ctx, rev.Name, metav1.GetOptions{})
		if err != nil {
			if apierrors.IsNotFound(err) {
				return nil // its service was deleted
			}
			return err
		}
		before := fresh.Status.DeepCopy()
		if len(fresh.Status.Conditions) == 0 {
			fresh.Status.InitializeConditions()
		}
		mark(&fresh.Status)
		fresh.Status.ObservedGeneration = fresh.Generation
		if equality.Semantic.DeepEqual(before, &fresh.Status) {
			return nil
		}
		_, err = client.UpdateStatus(ctx, fresh, metav1.UpdateOptions{})
		return err
	})
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}

// pinned is a reference by digest to an image that was asked for by ref.
func pinned(ref, digest string) string {
	repo, _, _ := strings.Cut(ref, "@")
	if i := strings.LastIndexByte(repo, ':'); i > strings.LastIndexByte(repo, '/') {
		repo = repo[:i]
	}
	return repo + "@" + digest
}
