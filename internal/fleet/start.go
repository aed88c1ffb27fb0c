package fleet

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/node"
)

// start launches one instance and gives it to the gateway.
func (r *revision) start() {
	defer r.poke()
	select {
	case r.fleet.starts <- struct{}{}:
	case <-r.ctx.Done():
		r.started(nil, errRemoved)
		return
	}
	r.mu.Lock()
	launch := r.spec.Launch
	r.mu.Unlock()
	release := sync.OnceFunc(func() { <-r.fleet.starts })
	waits := time.AfterFunc(r.fleet.slot, release)
	i, err := r.fleet.cfg.Node.Launch(r.ctx, launch)
	waits.Stop()
	release()
	r.started(i, err)
}

func (r *revision) started(i Instance, err error) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	if r.ctx.Err() != nil {
		if err == nil {
			r.work.Go(func() { _ = i.Stop(context.Background(), 0) })
		}
		return // detach tells those who wait
	}
	if err != nil {
		r.failed(now, err)
		return
	}
	// Failures are not forgotten yet: it may end as soon as those before.
	r.notBefore, r.lastErr = time.Time{}, nil
	r.scaler.Touch(now)
	r.ready = append(r.ready, i)
	r.fleet.cfg.Traffic.AddInstance(r.key, instance{i})
	r.work.Go(func() { r.watch(i) })
	r.work.Go(func() { r.care(i) })
	r.answer(nil)
	r.fleet.cfg.OnScale(r.key, len(r.ready))
}

// failed counts a failure and, if nothing else is on its way, tells those
// who wait. The caller holds mu.
func (r *revision) failed(now time.Time, err error) {
	r.backOff(now, err)
	if len(r.ready)+r.starting == 0 {
		r.fleet.cfg.Traffic.FailWaiting(r.key, err)
		r.answer(err)
	}
	r.fleet.cfg.Log.Warn("instance did not start", "namespace", r.key.Namespace, "revision", r.key.Name, "error", err)
	r.fleet.cfg.OnEvent(Event{Key: r.key, Reason: reasonOf(err), Err: err})
}

func (r *revision) backOff(now time.Time, err error) {
	if now.Sub(r.failedAt) > forgetAfter {
		r.failures = 0
	}
	r.lastErr, r.failedAt, r.spare = err, now, false
	wait := min(firstBackoff<<min(r.failures, 10), maxBackoff)
	r.failures++
	r.notBefore = now.Add(wait)
}

// answer wakes all who wait in ensure. The caller holds mu.
func (r *revision) answer(err error) {
	for _, w := range r.waiters {
		w <- err
	}
	r.waiters = nil
}

func reasonOf(err error) string {
	var s *node.StartError
	if errors.As(err, &s) {
		return s.Reason
	}
	return reasonCrashed
}
