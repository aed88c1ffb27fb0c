package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/autoscale"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
)

const (
	tick          = time.Second     // how often an active revision is looked at
	firstBackoff  = time.Second     // after a start that failed
	maxBackoff    = 5 * time.Minute // as Kubernetes' CrashLoopBackOff
	shortLife     = 10 * time.Second
	drainTimeout  = 10 * time.Minute // no request is allowed to last longer
	reasonCrashed = "InstanceExited"
)

func errUnknown(key gateway.RevisionKey) error {
	return fmt.Errorf("revision %s/%s is not on this node", key.Namespace, key.Name)
}

var errRemoved = errors.New("the revision was removed")

// revision keeps the instances of one revision. One goroutine, run, decides;
// the others start, watch and stop instances and report to it.
type revision struct {
	fleet  *Fleet
	key    gateway.RevisionKey
	wake   chan struct{}
	ctx    context.Context // ends when the revision is removed
	cancel context.CancelFunc
	done   chan struct{}  // run has returned
	work   sync.WaitGroup // goroutines of instances

	mu        sync.Mutex
	spec      Spec
	scaler    autoscale.Scaler
	stats     gateway.Stats    // when last looked
	ready     []*node.Instance // oldest first
	starting  int
	failures  int
	notBefore time.Time // no start until then
	lastErr   error
	waiters   []chan error
}

func newRevision(f *Fleet, s Spec) *revision {
	ctx, cancel := context.WithCancel(f.ctx)
	return &revision{fleet: f, key: s.Key, spec: s, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), done: make(chan struct{})}
}

func (r *revision) setSpec(s Spec) {
	r.mu.Lock()
	r.spec = s
	r.mu.Unlock()
	r.poke()
}

func (r *revision) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *revision) readyCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ready)
}

// run looks at the revision when it is poked and, while it is not settled,
// at every tick. A revision at rest costs nothing.
func (r *revision) run() {
	defer close(r.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
		if settled := r.reconcile(time.Now()); settled {
			timer.Stop()
		} else {
			timer.Reset(tick)
		}
	}
}

// reconcile starts and stops instances once. It reports whether nothing will
// change before the next poke.
func (r *revision) reconcile(now time.Time) (settled bool) {
	stats, _ := r.fleet.cfg.Traffic.Stats(r.key) // zero if the gateway does not know it yet
	r.mu.Lock()
	defer r.mu.Unlock()
	demand := max(float64(stats.InFlight+stats.Queued), stats.AverageSince(r.stats))
	r.stats = stats
	desired := r.scaler.Desired(now, r.spec.Policy, demand)
	if len(r.waiters) > 0 {
		desired = max(desired, 1)
	}
	have := len(r.ready) + r.starting
	switch {
	case desired > have && now.Before(r.notBefore):
		if have == 0 && stats.Queued > 0 {
			r.fleet.cfg.Traffic.FailWaiting(r.key, r.lastErr) // rather at once than at the deadline
		}
	case desired > have:
		for range desired - have {
			r.starting++
			r.work.Go(r.start)
		}
	case desired < len(r.ready):
		for range len(r.ready) - desired {
			i := r.ready[0]
			r.ready = r.ready[1:]
			r.work.Go(func() { r.retire(i) })
		}
		r.fleet.cfg.OnScale(r.key, len(r.ready))
	}
	return r.scaler.Settled(now, r.spec.Policy) && len(r.waiters) == 0 && desired == have
}

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
	i, err := r.fleet.cfg.Node.Launch(r.ctx, launch)
	<-r.fleet.starts
	r.started(i, err)
}

func (r *revision) started(i *node.Instance, err error) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	if err == nil && r.ctx.Err() != nil {
		err = errRemoved
		r.work.Go(func() { _ = i.Stop(context.Background(), 0) })
	}
	if err != nil {
		r.failed(now, err)
		return
	}
	r.failures, r.notBefore, r.lastErr = 0, time.Time{}, nil
	r.scaler.Touch(now)
	r.ready = append(r.ready, i)
	r.fleet.cfg.Traffic.AddInstance(r.key, instance{i})
	r.work.Go(func() { r.watch(i) })
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
	if !errors.Is(err, errRemoved) && r.ctx.Err() == nil {
		r.fleet.cfg.Log.Warn("instance did not start", "namespace", r.key.Namespace, "revision", r.key.Name, "error", err)
		r.fleet.cfg.OnEvent(Event{Key: r.key, Reason: reasonOf(err), Err: err})
	}
}

func (r *revision) backOff(now time.Time, err error) {
	r.lastErr = err
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

// watch takes an instance that ended by itself out of service.
func (r *revision) watch(i *node.Instance) {
	<-i.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	at := -1
	for n, x := range r.ready {
		if x == i {
			at = n
		}
	}
	if at < 0 {
		return // retired: it was asked to end
	}
	r.ready = append(r.ready[:at:at], r.ready[at+1:]...)
	r.fleet.cfg.Traffic.RemoveInstance(r.key, i.ID())
	err := i.ExitError()
	if now := time.Now(); now.Sub(i.ReadyAt()) < shortLife {
		r.backOff(now, err)
	}
	r.fleet.cfg.Log.Warn("instance ended", "namespace", r.key.Namespace, "revision", r.key.Name, "id", i.ID(), "error", err)
	r.fleet.cfg.OnEvent(Event{Key: r.key, Reason: reasonOf(err), Err: err})
	r.fleet.cfg.OnScale(r.key, len(r.ready))
	r.poke()
}

// retire lets an instance finish its requests, then stops it.
func (r *revision) retire(i *node.Instance) {
	drained := r.fleet.cfg.Traffic.RemoveInstance(r.key, i.ID())
	select {
	case <-drained:
	case <-i.Done():
	case <-time.After(drainTimeout):
	}
	r.mu.Lock()
	grace := r.spec.Grace
	r.mu.Unlock()
	_ = i.Stop(context.Background(), grace)
}

func (r *revision) ensure(ctx context.Context) error {
	r.mu.Lock()
	if len(r.ready) > 0 {
		r.mu.Unlock()
		return nil
	}
	if r.ctx.Err() != nil {
		r.mu.Unlock()
		return errRemoved
	}
	w := make(chan error, 1)
	r.waiters = append(r.waiters, w)
	r.mu.Unlock()
	r.poke()
	select {
	case err := <-w:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close retires everything and waits for it.
func (r *revision) close(ctx context.Context) error {
	r.cancel()
	<-r.done
	r.mu.Lock()
	instances := r.ready
	r.ready = nil
	r.answer(errRemoved)
	for _, i := range instances {
		r.work.Go(func() { r.retire(i) })
	}
	r.mu.Unlock()
	gone := make(chan struct{})
	go func() { r.work.Wait(); close(gone) }()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop revision %s/%s: %w", r.key.Namespace, r.key.Name, ctx.Err())
	}
}

func reasonOf(err error) string {
	var s *node.StartError
	if errors.As(err, &s) {
		return s.Reason
	}
	return reasonCrashed
}
