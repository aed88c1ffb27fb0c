package gateway

import (
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
