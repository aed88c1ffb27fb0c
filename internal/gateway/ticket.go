package gateway

import (
	"context"
	"time"
)

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
