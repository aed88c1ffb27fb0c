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
	forgetAfter   = 2 * maxBackoff  // failures this far apart are not a loop
	shortLife     = 10 * time.Second
	startSlot     = 10 * time.Second
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
	gone   chan struct{}  // removed, and work is done

	mu        sync.Mutex
	spec      Spec
	scaler    autoscale.Scaler
	stats     gateway.Stats // when last looked
	ready     []Instance    // oldest first
	starting  int
	failures  int       // starts and short lives in a row
	failedAt  time.Time // the last of them
	notBefore time.Time // no start until then
	spare     bool      // but one for requests that an instance left
	lastErr   error
	waiters   []chan error
}

func newRevision(f *Fleet, s Spec) *revision {
	ctx, cancel := context.WithCancel(f.ctx)
	return &revision{fleet: f, key: s.Key, spec: s, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), done: make(chan struct{}), gone: make(chan struct{})}
}

func (r *revision) setSpec(s Spec) {
	r.mu.Lock()
	r.spec = s
	r.mu.Unlock()
	if k, ok := r.fleet.cfg.Node.(Keeper); ok && r.ctx.Err() == nil {
		k.Keep(s.Launch)
	}
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
	if r.ctx.Err() != nil {
		return true
	}
	demand := max(float64(stats.InFlight+stats.Queued), stats.AverageSince(r.stats))
	r.stats = stats
	desired := r.scaler.Desired(now, r.spec.Policy, demand)
	if len(r.waiters) > 0 {
		desired = max(desired, 1)
	}
	have := len(r.ready) + r.starting
	if r.spare && have == 0 && stats.Queued > 0 {
		r.spare, r.notBefore = false, time.Time{}
	}
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
			r.retire(i)
		}
		r.fleet.cfg.OnScale(r.key, len(r.ready))
	}
	return r.scaler.Settled(now, r.spec.Policy) && len(r.waiters) == 0 && desired == have
}

// watch takes an instance that ended by itself out of service.
func (r *revision) watch(i Instance) {
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
	if now := time.Now(); reasonOf(err) == node.ReasonSnapshot {
		// Not the function's fault: another one is started at once.
	} else if now.Sub(i.ReadyAt()) < shortLife {
		r.backOff(now, err)
		// Once may be chance, and no fault of the requests that it left.
		r.spare = r.failures == 1
	} else {
		r.failures = 0
	}
	r.fleet.cfg.Log.Warn("instance ended", "namespace", r.key.Namespace, "revision", r.key.Name, "id", i.ID(), "error", err)
	r.fleet.cfg.OnEvent(Event{Key: r.key, Reason: reasonOf(err), Err: err})
	r.fleet.cfg.OnScale(r.key, len(r.ready))
	r.poke()
}

// retire takes an instance out of service, lets it finish its requests and
// stops it. The caller holds mu.
func (r *revision) retire(i Instance) {
	responses := r.fleet.cfg.Traffic.Responses(r.key, i.ID())
	drained := r.fleet.cfg.Traffic.RemoveInstance(r.key, i.ID())
	grace := r.spec.Grace
	r.work.Go(func() {
		select {
		case <-drained:
			if r.ctx.Err() == nil { // else nobody will want it
				r.saveAtEnd(i, responses)
			}
		case <-i.Done():
		case <-time.After(drainTimeout):
		}
		_ = i.Stop(context.Background(), grace)
	})
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

// detach ends the revision: when it returns the gateway has none of its
// instances and it starts no more. They drain in the background, until gone
// is closed. It is called once.
func (r *revision) detach() {
	r.cancel()
	<-r.done
	if k, ok := r.fleet.cfg.Node.(Keeper); ok {
		k.Unkeep(r.key.Namespace, r.key.Name)
	}
	r.mu.Lock()
	for _, i := range r.ready {
		r.retire(i)
	}
	r.ready = nil
	r.answer(errRemoved)
	r.mu.Unlock()
	go func() {
		r.work.Wait()
		close(r.gone)
	}()
}
