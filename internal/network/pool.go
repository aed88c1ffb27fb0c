package network

import (
	"context"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// pool holds leases that are ready. Only fill puts them in. A nil pool is
// always empty.
type pool struct {
	ready chan *Lease
	wake  chan struct{} // something was taken
}

func newPool(size int) *pool {
	return &pool{ready: make(chan *Lease, size), wake: make(chan struct{}, 1)}
}

// take returns nil if none is ready.
func (p *pool) take() *Lease {
	if p == nil {
		return nil
	}
	select {
	case l := <-p.ready:
		select {
		case p.wake <- struct{}{}:
		default:
		}
		return l
	default:
		return nil
	}
}

// fill keeps the pool full until ctx ends.
func (m *Manager) fill(ctx context.Context, kind sandbox.LinkKind, p *pool) {
	const first, longest = 100 * time.Millisecond, 30 * time.Second
	retry := first
	for ctx.Err() == nil {
		if len(p.ready) == cap(p.ready) {
			select {
			case <-p.wake:
			case <-ctx.Done():
			}
			continue
		}
		l, err := m.make(ctx, kind)
		if err == nil {
			p.ready <- l // has room: nobody else puts leases in
			retry = first
			continue
		}
		if ctx.Err() != nil {
			return
		}
		m.log.Error("cannot fill network pool", "kind", kind, "retry", retry, "error", err)
		select {
		case <-time.After(retry):
		case <-ctx.Done():
		}
		retry = min(2*retry, longest)
	}
}
