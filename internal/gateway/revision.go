package gateway

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Stats is what a revision is doing.
type Stats struct {
	At                     time.Time // when the stats were taken
	InFlight               int       // requests at instances
	Queued                 int       // requests that wait for an instance
	Instances              int       // that take requests
	Arrived                uint64    // requests ever
	LastRequest            time.Time // when the last one arrived or ended; zero if none
	ConcurrencySeconds     float64   // integral of running and queued requests over time
	ContainerConcurrency   int       // the revision's setting
	DrainingInstances      int       // removed, but still with requests
	FailedBeforeDispatched uint64    // requests that never got an instance
}

// AverageSince is the time-weighted average number of requests, running and
// queued, between two Stats of a revision. Without time in between it is the
// number now.
func (s Stats) AverageSince(prev Stats) float64 {
	d := s.At.Sub(prev.At).Seconds()
	if d <= 0 {
		return float64(s.InFlight + s.Queued)
	}
	return max(0, (s.ConcurrencySeconds-prev.ConcurrencySeconds)/d)
}

// revision hands requests to instances. One mutex guards it all, instances'
// counters and idle connections included, and is never held while waiting: that makes
// ContainerConcurrency exact.
type revision struct {
	key     RevisionKey
	metrics *revisionMetrics

	mu        sync.Mutex
	cfg       Revision
	closed    error       // set when the revision was removed
	instances []*instance // that take requests
	paused    []*instance // that will again
	draining  int
	queue     waitList

	inFlight int
	arrived  uint64
	failed   uint64
	last     time.Time
	// area is the integral of present over time until areaAt.
	present int
	area    float64
	areaAt  time.Time
}

func newRevision(cfg Revision, m *revisionMetrics, now time.Time) *revision {
	return &revision{key: cfg.Key, cfg: cfg, metrics: m, areaAt: now}
}

func (rv *revision) configure(cfg Revision) {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	rv.cfg = cfg
	for _, in := range rv.instances {
		rv.dispatch(in)
	}
}

func (rv *revision) config() Revision {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	return rv.cfg
}

func (rv *revision) close(err error) {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	rv.closed = err
	for _, in := range rv.instances {
		rv.retire(in)
	}
	for _, in := range rv.paused {
		rv.retire(in)
	}
	rv.instances, rv.paused = nil, nil
	rv.failWaitingLocked(err)
}

// account moves the integral to now and changes the number of requests.
func (rv *revision) account(now time.Time, delta int) {
	if d := now.Sub(rv.areaAt); d > 0 {
		rv.area += d.Seconds() * float64(rv.present)
		rv.areaAt = now
	}
	rv.present += delta
}

// ticket is a request's place: at an instance, or in the queue.
type ticket struct {
	inst *instance
	cfg  Revision
	// cold is the start of the instance if the request had to wait for it.
	cold *StartInfo
}

// acquire finds an instance for a request that arrived at now, waiting if it
// must. A retried request (again) was counted before and names the instances
// it has tried, which it will not get again. poke is called when it waits.
// After a nil error there must be a release, and a leave in any case.
func (rv *revision) acquire(ctx context.Context, now time.Time, again bool, tried []*instance, poke func(RevisionKey)) (ticket, error) {
	rv.mu.Lock()
	if !again {
		rv.account(now, 1)
		rv.arrived++
		rv.last = now
	}
	if rv.closed != nil {
		rv.mu.Unlock()
		return ticket{}, rv.closed
	}
	if in := rv.pick(tried); in != nil {
		rv.take(in)
		t := ticket{inst: in, cfg: rv.cfg}
		rv.mu.Unlock()
		return t, nil
	}
	if rv.queue.n >= rv.cfg.QueueDepth {
		rv.failed++
		depth := rv.cfg.QueueDepth
		rv.mu.Unlock()
		poke(rv.key)
		return ticket{}, &queueFullError{depth}
	}
	w := &waiter{tried: tried, since: now, granted: make(chan grant, 1)}
	rv.queue.push(w)
	limit := rv.cfg.QueueTimeout
	if again {
		limit = min(limit, retryWait)
	}
	rv.mu.Unlock()
	poke(rv.key)

	timer := time.NewTimer(limit)
	defer timer.Stop()
	var err error
	select {
	case gr := <-w.granted:
		return rv.accept(w, gr)
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
		err = &queueTimeoutError{limit}
	}
	rv.mu.Lock()
	if rv.queue.remove(w) {
		rv.failed++
		rv.mu.Unlock()
		return ticket{}, err
	}
	rv.mu.Unlock()
	// It was granted in the same moment: take it, unless the client is gone.
	t, gerr := rv.accept(w, <-w.granted)
	if gerr == nil && ctx.Err() != nil {
		rv.release(t.inst, false)
		return ticket{}, err
	}
	return t, gerr
}

func (rv *revision) accept(w *waiter, gr grant) (ticket, error) {
	if gr.err != nil {
		return ticket{}, gr.err
	}
	t := ticket{inst: gr.inst, cfg: gr.cfg}
	if gr.inst.added.After(w.since) && gr.inst.start.Kind != Adopted {
		t.cold = &gr.inst.start
	}
	return t, nil
}

// leave counts a request out that came in through acquire.
func (rv *revision) leave(now time.Time) {
	rv.mu.Lock()
	rv.account(now, -1)
	if now.After(rv.last) {
		rv.last = now
	}
	rv.mu.Unlock()
}

// release gives an instance's place to the first that waits for one. responded
// says whether the instance has answered.
func (rv *revision) release(in *instance, responded bool) {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	rv.inFlight--
	in.inFlight--
	if responded {
		if in.served++; in.served == 1 {
			in.first = in.gw.cfg.Now().Sub(in.taken)
		}
	}
	if in.awaits != nil {
		rv.look(in)
	}
	if !in.removed {
		rv.dispatch(in)
		return
	}
	if in.inFlight == 0 {
		rv.draining--
		in.closeIdle() // HTTP/2 connections that were in use before
		in.cut()
		close(in.done)
	}
}

// pick chooses as Knative does: with a limit the first instance that has
// room, which lets the later ones fall idle and go; without one the less
// loaded of two random instances.
func (rv *revision) pick(tried []*instance) *instance {
	n := len(rv.instances)
	if n == 0 {
		return nil
	}
	if rv.cfg.ContainerConcurrency > 0 || len(tried) > 0 {
		for _, in := range rv.instances {
			if rv.room(in) && !slices.Contains(tried, in) {
				return in
			}
		}
		return nil
	}
	a := rv.instances[0]
	if n > 1 {
		i := rand.IntN(n)
		j := rand.IntN(n - 1)
		if j >= i {
			j++
		}
		a = rv.instances[i]
		if b := rv.instances[j]; b.inFlight < a.inFlight {
			a = b
		}
	}
	return a
}

func (rv *revision) room(in *instance) bool {
	return rv.cfg.ContainerConcurrency == 0 || in.inFlight < rv.cfg.ContainerConcurrency
}

func (rv *revision) take(in *instance) {
	if in.taken.IsZero() {
		in.taken = in.gw.cfg.Now()
	}
	rv.inFlight++
	in.inFlight++
}

// dispatch gives waiting requests to an instance while it has room.
func (rv *revision) dispatch(in *instance) {
	for w := rv.queue.first; w != nil && rv.room(in); {
		next := w.next
		if !slices.Contains(w.tried, in) {
			rv.queue.remove(w)
			rv.take(in)
			w.granted <- grant{inst: in, cfg: rv.cfg}
		}
		w = next
	}
}

func (rv *revision) add(in *instance) bool {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	if rv.closed != nil || rv.find(in.id) >= 0 || rv.findPaused(in.id) >= 0 {
		return false
	}
	rv.instances = append(rv.instances, in)
	rv.dispatch(in)
	return true
}

func (rv *revision) find(id string) int {
	return slices.IndexFunc(rv.instances, func(in *instance) bool { return in.id == id })
}

func (rv *revision) remove(id string) <-chan struct{} {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	i := rv.find(id)
	if p := rv.findPaused(id); p >= 0 {
		in := rv.paused[p]
		rv.paused = slices.Delete(rv.paused, p, p+1)
		rv.retire(in)
		return in.done
	}
	if i < 0 {
		return nil
	}
	in := rv.instances[i]
	rv.instances = slices.Delete(rv.instances, i, i+1)
	rv.retire(in)
	return in.done
}

// retire marks an instance removed, which is no longer in rv.instances.
func (rv *revision) retire(in *instance) {
	in.removed = true
	rv.giveUp(in)
	in.closeIdle()
	if in.inFlight == 0 {
		in.cut()
		close(in.done)
	} else {
		rv.draining++
	}
}

func (rv *revision) failWaiting(err error) {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	rv.failWaitingLocked(err)
}

func (rv *revision) failWaitingLocked(err error) {
	for w := rv.queue.first; w != nil; w = rv.queue.first {
		rv.queue.remove(w)
		rv.failed++
		w.granted <- grant{err: err}
	}
}

func (rv *revision) stats(now time.Time) Stats {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	rv.account(now, 0)
	return Stats{
		At: rv.areaAt, InFlight: rv.inFlight, Queued: rv.queue.n,
		Instances: len(rv.instances) + len(rv.paused), DrainingInstances: rv.draining,
		Arrived: rv.arrived, FailedBeforeDispatched: rv.failed,
		LastRequest: rv.last, ConcurrencySeconds: rv.area,
		ContainerConcurrency: rv.cfg.ContainerConcurrency,
	}
}

// refuse counts a request in that will not ask for an instance.
func (rv *revision) refuse(now time.Time) {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	rv.account(now, 1)
	rv.arrived++
	rv.failed++
	rv.last = now
}

// tryAcquire is acquire for the fast lane: for requests that do not wait, to
// revisions without anything special.
func (rv *revision) tryAcquire(now time.Time) (ticket, bool) {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	if rv.closed != nil || rv.cfg.Protocol != HTTP1 || rv.cfg.ResponseStartTimeout > 0 {
		return ticket{}, false
	}
	in := rv.pick(nil)
	if in == nil {
		return ticket{}, false
	}
	rv.take(in)
	rv.account(now, 1)
	rv.arrived++
	rv.last = now
	return ticket{inst: in, cfg: rv.cfg}, true
}

// untake undoes tryAcquire for a request that will come again by acquire.
func (rv *revision) untake(in *instance, now time.Time) {
	rv.release(in, false)
	rv.mu.Lock()
	defer rv.mu.Unlock()
	rv.account(now, -1)
	rv.arrived--
}
