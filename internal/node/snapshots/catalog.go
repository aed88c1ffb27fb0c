package snapshots

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/internal/snapshot"
)

// Reasons of events.
const (
	ReasonDamaged = "SnapshotDamaged"
	ReasonForeign = "SnapshotForeign"
	ReasonFailed  = "SnapshotFailed"
)

// Event is something about a revision's snapshots that its owner should see.
type Event struct {
	Namespace, Revision string
	Reason              string // one of the Reason constants
	Err                 error
}

// Config says what a Catalog works with.
type Config struct {
	Dir     string // its own: copies live below it
	Store   *snapshot.Store
	Journal *journal.Journal
	// MaxCopies bounds the bytes of copies on this machine, MaxStore those in
	// the store; 0 is no limit. What is in use or not stored yet may be above.
	MaxCopies, MaxStore int64
	// Patience is how long a start waits for a snapshot to come from the
	// store, before it boots instead; 0 means DefaultPatience.
	Patience time.Duration
	Log      *slog.Logger
	// OnEvent is told what went wrong. It must not block.
	OnEvent    func(Event)
	Registerer prometheus.Registerer // nil: metrics are kept but not registered
	Now        func() time.Time      // nil: time.Now
}

// DefaultPatience is about what a boot takes.
const DefaultPatience = 500 * time.Millisecond

// ErrHave is returned by Create if there is such a snapshot already.
var ErrHave = errors.New("there is a snapshot already")

// ErrNotNow is returned by Create while one is made already, and for a while
// after failures.
var ErrNotNow = errors.New("no snapshot is made now")

// Catalog keeps the snapshots of a node. It is safe for concurrent use.
type Catalog struct {
	cfg     Config
	metrics *metrics
	boot    string // ID of this boot of the machine
	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	wake    chan struct{} // pokes the goroutine that stores copies

	indexed chan struct{} // closed when the store was read once

	mu     sync.Mutex
	keys   map[string]*entry
	copies map[string]*local // by name
	closed bool
}

// entry is what is known of a key.
type entry struct {
	copy   *local   // to restore from; nil if there is none here
	stored []stored // in the store, the newest first
	saving bool
	// loading is closed when the store's snapshot is here, or cannot be.
	loading         chan struct{}
	saves, restores backoff
	foreign         map[snapshot.ID]bool // was told
	unrecorded      int                  // recordings that failed, in all
}

type stored struct {
	id snapshot.ID
	m  *snapshot.Manifest
	at time.Time // when this process stored it; zero if it did not
}

// Open makes a catalog, and removes what an earlier process of it left half
// made. The store is read in the background.
func Open(ctx context.Context, cfg Config) (*Catalog, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Patience <= 0 {
		cfg.Patience = DefaultPatience
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(Event) {}
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	c := &Catalog{
		cfg: cfg, boot: string(boot), wake: make(chan struct{}, 1), indexed: make(chan struct{}),
		keys: map[string]*entry{}, copies: map[string]*local{},
	}
	c.metrics = newMetrics(c, cfg.Registerer)
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.recover(ctx); err != nil {
		c.cancel()
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	c.work.Go(c.index)
	c.work.Go(c.storeAll)
	c.poke()
	return c, nil
}

// Close ends what goes on in the background; what was not stored yet is at
// the next start.
func (c *Catalog) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	done := make(chan struct{})
	go func() { c.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("snapshots are still being written: %w", ctx.Err())
	}
}

// goWork runs f in the background, unless the catalog is closed.
func (c *Catalog) goWork(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Go(f)
	}
}

func (c *Catalog) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// key returns the entry of a key. The caller holds mu.
func (c *Catalog) key(key string) *entry {
	e := c.keys[key]
	if e == nil {
		e = &entry{foreign: map[snapshot.ID]bool{}}
		c.keys[key] = e
	}
	return e
}

// index reads the store until that has worked once.
func (c *Catalog) index() {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		err := c.Refresh(c.ctx)
		if err == nil {
			close(c.indexed)
			return
		}
		if c.ctx.Err() == nil {
			c.cfg.Log.Warn("read the snapshot store, will try again", "error", err)
		}
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// Refresh reads anew what the store holds: it may have other users.
func (c *Catalog) Refresh(ctx context.Context) error {
	began := c.cfg.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	all, err := c.cfg.Store.List(ctx)
	if err != nil {
		return err
	}
	found := map[string][]stored{}
	ids := map[snapshot.ID]bool{}
	for _, s := range all {
		if s.Err != nil {
			c.cfg.Log.Warn("a snapshot in the store cannot be used", "snapshot", s.ID, "error", s.Err)
			continue
		}
		ids[s.ID] = true
		if key := s.Manifest.Labels[LabelKey]; key != "" {
			found[key] = append(found[key], stored{id: s.ID, m: s.Manifest})
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range found {
		c.key(key)
	}
	for key, e := range c.keys {
		// What was stored since the list was made stays.
		for _, s := range e.stored {
			if !ids[s.id] && s.at.After(began) {
				found[key] = append(found[key], s)
			}
		}
		e.stored = found[key]
		slices.SortStableFunc(e.stored, func(a, b stored) int {
			return cmp.Or(b.m.Created.Compare(a.m.Created), cmp.Compare(a.id.Hex(), b.id.Hex()))
		})
	}
	for _, l := range c.copies {
		id := l.rec.Snapshot
		if !l.dirty() && !id.IsZero() && !ids[id] && l.storedAt.Before(began) {
			c.drop(l) // removed from the store: by its limit, or by somebody
		}
	}
	return nil
}

// Collect keeps the store and the copies within their limits.
func (c *Catalog) Collect(ctx context.Context) (snapshot.GCStats, error) {
	stats, err := c.cfg.Store.GC(ctx, snapshot.Policy{MaxBytes: c.cfg.MaxStore})
	if err != nil {
		return stats, err
	}
	if err := c.Refresh(ctx); err != nil {
		return stats, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shrink()
	return stats, nil
}

// Store is where the catalog's snapshots are.
func (c *Catalog) Store() *snapshot.Store { return c.cfg.Store }

// Copies says which of the store's snapshots are on this machine as files,
// and the bytes that those take.
func (c *Catalog) Copies() map[snapshot.ID]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[snapshot.ID]int64{}
	for _, l := range c.copies {
		if !l.rec.Snapshot.IsZero() && !l.dead {
			out[l.rec.Snapshot] = l.rec.Bytes
		}
	}
	return out
}

// Forget removes all snapshots of a revision that is gone: they hold what was
// in its memory.
func (c *Catalog) Forget(namespace, revision string) {
	is := func(labels map[string]string) bool {
		return labels[LabelNamespace] == namespace && labels[LabelRevision] == revision
	}
	c.mu.Lock()
	var ids []snapshot.ID
	for key, e := range c.keys {
		mine := e.copy != nil && is(e.copy.rec.Manifest.Labels)
		for _, s := range e.stored {
			if is(s.m.Labels) {
				mine = true
				ids = append(ids, s.id)
			}
		}
		if mine {
			delete(c.keys, key)
		}
	}
	for _, l := range c.copies {
		if is(l.rec.Manifest.Labels) {
			if !l.rec.Snapshot.IsZero() && !slices.Contains(ids, l.rec.Snapshot) {
				ids = append(ids, l.rec.Snapshot)
			}
			l.forget = true
			c.drop(l)
		}
	}
	c.mu.Unlock()
	if len(ids) > 0 {
		c.goWork(func() { c.deleteStored(ids) })
	}
}

// deleteStored removes snapshots from the store; those in use stay for the
// limit to take.
func (c *Catalog) deleteStored(ids []snapshot.ID) {
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	for _, id := range ids {
		err := c.cfg.Store.Delete(ctx, id)
		if err != nil && !errors.Is(err, snapshot.ErrNotFound) && c.ctx.Err() == nil {
			c.cfg.Log.Warn("remove snapshot from the store", "snapshot", id, "error", err)
		}
	}
}

// tell reports what went wrong with a snapshot.
func (c *Catalog) tell(labels map[string]string, reason string, err error) {
	c.cfg.Log.Warn("snapshot", "reason", reason, "namespace", labels[LabelNamespace], "revision", labels[LabelRevision], "error", err)
	c.cfg.OnEvent(Event{Namespace: labels[LabelNamespace], Revision: labels[LabelRevision], Reason: reason, Err: err})
}
