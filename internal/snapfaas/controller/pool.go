package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Errors of a request, one for each status on the wire.
var (
	ErrNoFunction = errors.New("there is no such function")
	ErrExhausted  = errors.New("no memory is left for another VM, or the function's concurrency limit is reached")
	ErrLaunch     = errors.New("the VM could not be started")
	ErrRequest    = errors.New("the request failed")
	ErrClosed     = errors.New("the controller is stopping")
)

// VM is a running micro-VM.
type VM interface {
	// Close ends it and frees what it held. It is idempotent.
	Close() error
	// Ended is closed when the VM has ended, whoever ended it.
	Ended() <-chan struct{}
}

// Limits of one function in a pool.
type Limits struct {
	MemoryMiB int64
	VMs       int
}

// Pool hands out micro-VMs: an idle one of the function, the last used first;
// else a new one, if memory allows; else a new one in the place of idle ones of
// others, the longest idle first; else ErrExhausted. Its methods are safe for
// concurrent use.
type Pool[V VM] struct {
	launch func(ctx context.Context, function string) (V, error)
	total  int64

	mu     sync.Mutex
	closed bool
	used   int64 // MiB of all VMs, those starting included
	kinds  map[string]*kind[V]
	clock  uint64 // counts puts, to compare idle times
	live   sync.WaitGroup
}

// kind is the pool's account of one function.
type kind[V VM] struct {
	Limits
	count int       // VMs, those starting included
	idle  []idle[V] // the last used at the end
}

type idle[V VM] struct {
	vm    V
	since uint64
}

// NewPool makes a pool. launch starts VMs, at any time several at once.
func NewPool[V VM](totalMiB int64, functions map[string]Limits, launch func(ctx context.Context, function string) (V, error)) *Pool[V] {
	p := &Pool[V]{launch: launch, total: totalMiB, kinds: map[string]*kind[V]{}}
	for name, l := range functions {
		p.kinds[name] = &kind[V]{Limits: l}
	}
	return p
}

// Get takes a VM, which is to be given back by Put or Drop. cold says that it
// was started for this call.
func (p *Pool[V]) Get(ctx context.Context, function string) (vm V, cold bool, err error) {
	p.mu.Lock()
	k := p.kinds[function]
	switch {
	case k == nil:
		p.mu.Unlock()
		return vm, false, fmt.Errorf("%w: %.100q", ErrNoFunction, function)
	case p.closed:
		p.mu.Unlock()
		return vm, false, ErrClosed
	}
	for len(k.idle) > 0 {
		last := k.idle[len(k.idle)-1]
		k.idle = k.idle[:len(k.idle)-1]
		select {
		case <-last.vm.Ended(): // it died while nobody looked
			p.forget(k, last.vm)
			continue
		default:
		}
		p.mu.Unlock()
		return last.vm, false, nil
	}
	victims, err := p.reserve(k)
	p.mu.Unlock()
	if err != nil {
		return vm, false, fmt.Errorf("%w (%s)", err, function)
	}
	// Their memory must be free before it is used again.
	for _, v := range victims {
		_ = v.Close() // what it could not free, it has said
		p.live.Done()
	}
	if vm, err = p.launch(ctx, function); err != nil {
		p.mu.Lock()
		p.release(k)
		p.mu.Unlock()
		p.live.Done()
		return vm, true, fmt.Errorf("%w: %w", ErrLaunch, err)
	}
	return vm, true, nil
}

// reserve accounts for a new VM, and takes from others what it needs.
func (p *Pool[V]) reserve(k *kind[V]) (victims []V, err error) {
	if k.count >= k.VMs || k.MemoryMiB > p.total {
		return nil, ErrExhausted
	}
	var spare int64
	for _, other := range p.kinds {
		spare += int64(len(other.idle)) * other.MemoryMiB
	}
	if p.used-spare+k.MemoryMiB > p.total {
		return nil, ErrExhausted // nobody is sent away in vain
	}
	for p.used+k.MemoryMiB > p.total {
		var oldest *kind[V]
		for _, other := range p.kinds {
			if len(other.idle) > 0 && (oldest == nil || other.idle[0].since < oldest.idle[0].since) {
				oldest = other
			}
		}
		victims = append(victims, oldest.idle[0].vm)
		oldest.idle = oldest.idle[1:]
		p.release(oldest)
	}
	k.count++
	p.used += k.MemoryMiB
	p.live.Add(1)
	return victims, nil
}

func (p *Pool[V]) release(k *kind[V]) {
	k.count--
	p.used -= k.MemoryMiB
}

// forget drops a VM without waiting for it. p.mu is held.
func (p *Pool[V]) forget(k *kind[V], vm V) {
	p.release(k)
	go func() {
		defer p.live.Done()
		_ = vm.Close() // as in Get
	}()
}

// Put gives back a VM that can take another request.
func (p *Pool[V]) Put(function string, vm V) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kinds[function]
	if p.closed {
		p.forget(k, vm)
		return
	}
	p.clock++
	k.idle = append(k.idle, idle[V]{vm, p.clock})
}

// Drop gives back a VM that is of no use any more.
func (p *Pool[V]) Drop(function string, vm V) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(p.kinds[function], vm)
}

// Stats says how many VMs a function has, and how many of them are idle.
func (p *Pool[V]) Stats(function string) (all, idle int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kinds[function]
	if k == nil {
		return 0, 0
	}
	return k.count, len(k.idle)
}

// Close ends all VMs: idle ones now, others when they are given back, for
// which it waits. Get fails from now on.
func (p *Pool[V]) Close() {
	p.mu.Lock()
	p.closed = true
	for _, k := range p.kinds {
		for _, i := range k.idle {
			p.forget(k, i.vm)
		}
		k.idle = nil
	}
	p.mu.Unlock()
	p.live.Wait()
}
