package node

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"time"
)

const (
	maxPrepared   = 64               // on the node
	poolTick      = 10 * time.Second // how often pools are looked at that may shrink or grow old
	maxPoolStarts = 64               // remembered for a pool's policy
	poolPause     = 30 * time.Second // after a failure
	prepareLimit  = time.Minute      // for one sandbox
)

// pool keeps sandboxes prepared: all but the resume is done. They are recorded
// like others, so that a crash leaves nothing. One goroutine, run, fills and
// drains all pools, so that it takes one CPU at most from what runs.
type pool struct {
	n    *Node
	wake chan struct{}

	mu    sync.Mutex
	slots map[slotKey]*slot
}

type slotKey struct{ namespace, revision string }

// slot is the pool of a revision.
type slot struct {
	launch Launch
	ready  []*Instance // oldest first
	starts []time.Time
	until  time.Time // not filled before
}

func (p *pool) init(n *Node) {
	p.n, p.wake, p.slots = n, make(chan struct{}, 1), map[slotKey]*slot{}
}

// Keep has the node keep sandboxes of a revision prepared, as the launch's
// options say, from now on.
func (n *Node) Keep(l Launch) {
	key := slotKey{l.Namespace, l.Revision}
	p := &n.pool
	p.mu.Lock()
	if l.Snapshot.Pool == nil || l.Snapshot.Pool.String() == "0" || !l.Snapshot.Restore {
		p.mu.Unlock()
		n.Unkeep(l.Namespace, l.Revision)
		return
	}
	s := p.slots[key]
	if s == nil {
		s = &slot{}
		p.slots[key] = s
	}
	var old []*Instance
	if !reflect.DeepEqual(s.launch, l) {
		s.launch, s.until = l, time.Time{}
		old, s.ready = s.ready, nil
	}
	p.mu.Unlock()
	p.discard(old)
	p.poke()
}

// Unkeep ends what Keep began.
func (n *Node) Unkeep(namespace, revision string) {
	p := &n.pool
	key := slotKey{namespace, revision}
	p.mu.Lock()
	s := p.slots[key]
	delete(p.slots, key)
	p.mu.Unlock()
	if s != nil {
		p.discard(s.ready)
	}
}

// Prepared is how many sandboxes wait to be started.
func (n *Node) Prepared() int {
	n.pool.mu.Lock()
	defer n.pool.mu.Unlock()
	return n.pool.count()
}

func (p *pool) count() int {
	sum := 0
	for _, s := range p.slots {
		sum += len(s.ready)
	}
	return sum
}

func (p *pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns a prepared instance, or nil. The caller pokes the pool when the
// instance runs: what is prepared next must not take the CPU from it.
func (p *pool) take(l Launch) *Instance {
	p.mu.Lock()
	s := p.slots[slotKey{l.Namespace, l.Revision}]
	if s == nil {
		p.mu.Unlock()
		return nil
	}
	s.starts = append(s.starts, time.Now())
	if len(s.starts) > maxPoolStarts {
		s.starts = slices.Delete(s.starts, 0, len(s.starts)-maxPoolStarts)
	}
	var got *Instance
	var old []*Instance
	for len(s.ready) > 0 && got == nil {
		i := s.ready[0]
		s.ready = s.ready[1:]
		if i.use.Current() && reflect.DeepEqual(i.launch, l) {
			got = i
		} else {
			old = append(old, i)
		}
	}
	p.mu.Unlock()
	p.discard(old)
	if got != nil {
		got.clock, got.phases, got.ahead = time.Now(), nil, len(got.sandbox.Phases())
		got.phase("pool")
	}
	return got
}

// discard gives back prepared instances in the background.
func (p *pool) discard(all []*Instance) {
	for _, i := range all {
		leave, err := p.n.enter()
		if err != nil { // the node closes
			i.clean(context.Background())
			continue
		}
		go func() {
			defer leave()
			i.clean(context.Background())
		}()
	}
}

// run fills pools until the node closes.
func (p *pool) run() {
	tick := time.NewTicker(poolTick)
	defer tick.Stop()
	for {
		for p.n.ctx.Err() == nil && p.step(time.Now()) {
		}
		select {
		case <-p.n.ctx.Done():
			return
		case <-p.wake:
		case <-tick.C:
		}
	}
}

// step does one thing, and reports whether there may be more.
func (p *pool) step(now time.Time) bool {
	p.mu.Lock()
	var old []*Instance
	var fill *slot
	for _, s := range p.slots {
		want := s.launch.Snapshot.Pool.Size(now, s.starts)
		for n := 0; n < len(s.ready); {
			if len(s.ready) > want || !s.ready[n].use.Current() {
				old = append(old, s.ready[n])
				s.ready = slices.Delete(s.ready, n, n+1)
				continue
			}
			n++
		}
		if len(s.ready) < want && !now.Before(s.until) && (fill == nil || len(s.ready) < len(fill.ready)) {
			fill = s
		}
	}
	if fill != nil && p.count() >= maxPrepared {
		fill = nil
	}
	var l Launch
	if fill != nil {
		l = fill.launch
	}
	p.mu.Unlock()
	p.discard(old)
	if fill == nil {
		return false
	}
	i, err := p.n.prepareOne(l)
	p.mu.Lock()
	s := p.slots[slotKey{l.Namespace, l.Revision}]
	switch {
	case err != nil:
		fill.until = time.Now().Add(poolPause)
		if errors.Is(err, errNoSnapshot) {
			fill.until = time.Time{} // a poke tells of one
		}
	case s == fill && reflect.DeepEqual(s.launch, l):
		s.ready = append(s.ready, i)
		i = nil
	}
	p.mu.Unlock()
	if err != nil {
		if !errors.Is(err, errNoSnapshot) && p.n.ctx.Err() == nil {
			p.n.cfg.Log.Warn("prepare a sandbox for the pool", "revision", l.Revision, "error", err)
		}
		return false
	}
	if i != nil { // for something else by now
		p.discard([]*Instance{i})
	}
	return true
}

// prepareOne makes a prepared instance. On error nothing is left.
func (n *Node) prepareOne(l Launch) (*Instance, error) {
	leave, err := n.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(n.ctx, prepareLimit)
	defer cancel()
	driver, o, err := n.options(&l)
	if err != nil || !o.Restore {
		return nil, errors.Join(err, errNoSnapshot)
	}
	i := n.newInstance(l, driver, o)
	if err := i.prepare(ctx); err != nil {
		if i.use != nil && ctx.Err() == nil {
			i.use.Failed(err)
		}
		i.clean(context.WithoutCancel(ctx))
		return nil, err
	}
	return i, nil
}

// drain gives all back, once run has ended.
func (p *pool) drain(ctx context.Context) {
	p.mu.Lock()
	all := p.slots
	p.slots = map[slotKey]*slot{}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range all {
		for _, i := range s.ready {
			wg.Go(func() { i.clean(context.WithoutCancel(ctx)) })
		}
	}
	wg.Wait()
}
