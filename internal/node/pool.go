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
	// DefaultPoolMemory is how much memory prepared sandboxes may take, in bytes.
	DefaultPoolMemory = 1 << 30

	maxPrepared   = 64               // on the node
	poolTick      = 10 * time.Second // how often pools are looked at that may shrink or grow old
	maxPoolStarts = 64               // remembered for a pool's policy
	poolPause     = 30 * time.Second // after a failure
	prepareLimit  = time.Minute      // for one sandbox
)

// pool keeps sandboxes prepared: all is done that needs no request. They are recorded
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
	size   int64     // bytes of memory that one took; 0: not known
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
		p.drop(key)
		return
	}
	s := p.slots[key]
	if s == nil {
		s = &slot{}
		p.slots[key] = s
	}
	var old []*Instance
	if !reflect.DeepEqual(s.launch, l) {
		s.launch, s.until, s.size = l, time.Time{}, 0
		old, s.ready = s.ready, nil
	}
	p.mu.Unlock()
	p.discard(old)
	p.poke()
}

// Unkeep ends what Keep began.
func (n *Node) Unkeep(namespace, revision string) {
	key := slotKey{namespace, revision}
	n.mu.Lock()
	delete(n.starts, key)
	n.mu.Unlock()
	n.pool.drop(key)
}

func (p *pool) drop(key slotKey) {
	p.mu.Lock()
	s := p.slots[key]
	delete(p.slots, key)
	p.mu.Unlock()
	if s != nil {
		p.discard(s.ready)
	}
}

// held is how many sandboxes wait to be started, and the bytes they take.
func (p *pool) held() (sandboxes int, memory int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum()
}

func (p *pool) sum() (sandboxes int, memory int64) {
	for _, s := range p.slots {
		sandboxes += len(s.ready)
		for _, i := range s.ready {
			memory += i.memory
		}
	}
	return sandboxes, memory
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
		p.n.metrics.pool.WithLabelValues(poolTaken).Inc()
	} else {
		p.n.metrics.pool.WithLabelValues(poolEmpty).Inc()
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
	for key := range p.slots {
		p.trim(p.slots[key], now, &old)
	}
	count, memory := p.sum()
	for _, s := range p.slots {
		want := s.launch.Snapshot.Pool.Size(now, s.starts)
		room := count < maxPrepared && memory+s.size <= p.n.cfg.PoolMemory
		if len(s.ready) < want && room && !now.Before(s.until) && (fill == nil || len(s.ready) < len(fill.ready)) {
			fill = s
		}
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
		s.size = i.memory
		if memory+s.size <= p.n.cfg.PoolMemory {
			s.ready = append(s.ready, i)
			i = nil
		} else {
			p.n.cfg.Log.Info("a prepared sandbox does not fit into the pool", "revision", l.Revision, "bytes", s.size, "limit", p.n.cfg.PoolMemory)
		}
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

// trim takes what a slot has too many of, or what is out of date. The caller
// holds mu.
func (p *pool) trim(s *slot, now time.Time, old *[]*Instance) {
	want := s.launch.Snapshot.Pool.Size(now, s.starts)
	for n := 0; n < len(s.ready); {
		if len(s.ready) <= want && s.ready[n].use.Current() {
			n++
			continue
		}
		if len(s.ready) <= want {
			s.size = 0 // of another snapshot
		}
		*old = append(*old, s.ready[n])
		s.ready = slices.Delete(s.ready, n, n+1)
	}
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
	i.pooled = true
	if err := i.prepare(ctx); err != nil {
		if i.use != nil && ctx.Err() == nil {
			i.use.Failed(err)
		}
		i.clean(context.WithoutCancel(ctx))
		return nil, err
	}
	if s, err := i.sandbox.Stats(ctx); err == nil {
		i.memory = s.MemoryBytes
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
