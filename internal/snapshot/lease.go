package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Leases keep creation, reading and collection apart, across processes and
// machines, by nothing but the backend's promise that a finished Put is seen
// by every later List. Each side first puts its own lease and then looks for
// the other's, so at least one of two sees the other:
//
//	create  somebody writes objects that no manifest names yet
//	pin     somebody reads a snapshot (its ID follows)
//	sweep   somebody deletes unreferenced objects; create waits for its end
//	evict   somebody deletes manifests; pin and create wait for its end
//
// A lease is a one-byte object "leases/KIND.ID.NONCE.EXPIRY" (EXPIRY in Unix
// milliseconds); it is renewed by putting one with a later expiry. What a dead
// process leaves behind counts for nothing after its expiry.
type leaseKind string

const (
	leaseCreate leaseKind = "create"
	leasePin    leaseKind = "pin"
	leaseSweep  leaseKind = "sweep"
	leaseEvict  leaseKind = "evict"
)

// errNoLease: a lease could not be stored.
var errNoLease = errors.New("the store cannot be written to")

type lease struct {
	s     *Store
	kind  leaseKind
	of    ID
	nonce string

	// Ctx ends, with ErrLost as cause, when the lease could not be renewed.
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{}

	mu      sync.Mutex
	name    string
	expires time.Time
}

func (l *lease) nameFor(expires time.Time) string {
	return fmt.Sprintf("%s%s.%s.%s.%d", leaseDir, l.kind, l.of.Hex(), l.nonce, expires.UnixMilli())
}

// acquire puts a lease and keeps it alive until it is released.
func (s *Store) acquire(ctx context.Context, kind leaseKind, of ID) (*lease, error) {
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, fmt.Errorf("making a lease: %w", err)
	}
	l := &lease{s: s, kind: kind, of: of, nonce: hex.EncodeToString(nonce[:]), done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := l.renew(ctx); err != nil {
		l.cancel(err)
		return nil, fmt.Errorf("taking a %s lease: %w: %w", kind, errNoLease, err)
	}
	go l.keep()
	return l, nil
}

func (l *lease) renew(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	expires := l.s.opts.Now().Add(l.s.opts.LeaseTTL)
	name := l.nameFor(expires)
	if name == l.name {
		return nil
	}
	if err := l.s.put(ctx, name, []byte{'\n'}); err != nil {
		return err
	}
	old := l.name
	l.name, l.expires = name, expires
	if old != "" {
		return l.s.b.Delete(ctx, old)
	}
	return nil
}

func (l *lease) keep() {
	defer close(l.done)
	tick := time.NewTicker(max(l.s.opts.LeaseTTL/3, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(l.ctx, l.s.opts.LeaseTTL/3)
		err := l.renew(ctx)
		cancel()
		if err != nil {
			l.s.opts.Log.Warn("a lease could not be renewed", "kind", l.kind, "error", err)
		}
		if l.check() != nil {
			l.cancel(ErrLost)
			return
		}
	}
}

// check says whether the lease still protects.
func (l *lease) check() error {
	if err := context.Cause(l.ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.s.opts.Now().Before(l.expires) {
		return ErrLost
	}
	return nil
}

// releaseTimeout bounds clean-up, which goes on when its caller was cancelled.
const releaseTimeout = 10 * time.Second

func (l *lease) release(ctx context.Context) {
	l.cancel(context.Canceled)
	<-l.done
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := l.s.b.Delete(ctx, l.name); err != nil {
		l.s.opts.Log.Warn("a lease could not be given back; it runs out by itself", "lease", l.name, "error", err)
	}
}

// within gives a context that ends with ctx or with the lease.
func (l *lease) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}

// foundLease is somebody's lease that has not run out.
type foundLease struct {
	kind  leaseKind
	of    ID
	nonce string
}

// leases lists the live leases of some kinds, and removes those that ran out
// long ago.
func (s *Store) leases(ctx context.Context, kinds ...leaseKind) ([]foundLease, error) {
	var found []foundLease
	now := s.opts.Now()
	for _, kind := range kinds {
		err := s.b.List(ctx, leaseDir+string(kind)+".", func(i backend.Info) error {
			part := strings.Split(strings.TrimPrefix(i.Name, leaseDir), ".")
			if len(part) != 4 {
				return nil
			}
			of, err := ParseDigest(part[1])
			ms, err2 := strconv.ParseInt(part[3], 10, 64)
			if err != nil || err2 != nil {
				return nil //nolint:nilerr // somebody else's object
			}
			expires := time.UnixMilli(ms)
			switch {
			case now.Before(expires):
				found = append(found, foundLease{kind, of, part[2]})
			case now.Sub(expires) > s.opts.LeaseTTL:
				return s.b.Delete(ctx, i.Name)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("looking for leases: %w", err)
		}
	}
	return found, nil
}

// acquireAfter takes a lease and waits until nobody holds one of the kinds
// that exclude it. The wait is bounded by ctx; ErrBusy tells of its end.
func (s *Store) acquireAfter(ctx context.Context, kind leaseKind, of ID, excluding ...leaseKind) (*lease, error) {
	for {
		l, err := s.acquire(ctx, kind, of)
		if err != nil {
			return nil, err
		}
		if kind != leaseCreate {
			if err := s.waitFor(ctx, excluding...); err != nil {
				l.release(ctx)
				return nil, err
			}
			return l, nil
		}
		// A sweep waits for creations as well: who creates gives way, or both
		// would wait for ever.
		found, err := s.leases(ctx, excluding...)
		if err == nil && len(found) == 0 {
			return l, nil
		}
		l.release(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.waitFor(ctx, excluding...); err != nil {
			return nil, err
		}
	}
}

func (s *Store) waitFor(ctx context.Context, kinds ...leaseKind) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		found, err := s.leases(ctx, kinds...)
		if err == nil && len(found) == 0 {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		// Nothing signals across processes: ask again, less and less often.
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if len(found) == 0 {
				return errors.Join(ErrBusy, context.Cause(ctx))
			}
			return fmt.Errorf("%w: waiting for the end of a %s: %w", ErrBusy, found[0].kind, context.Cause(ctx))
		}
	}
}
