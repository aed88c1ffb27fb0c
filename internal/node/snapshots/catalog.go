package snapshots

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
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
	removal chan struct{} // pokes the one that removes snapshots

	indexed chan struct{} // closed when the store was read once

	mu     sync.Mutex
	keys   map[string]*entry
	copies map[string]*local // by name
	doomed map[snapshot.ID]*backoff
	// forgotten are revisions that are gone, since when, until the store was
	// asked what it has of them.
	forgotten map[revision]time.Time
	closed    bool
}

// entry is what is known of a key.
type entry struct {
	copy   *local   // to restore from; nil if there is none here
	stored []stored // in the store, the newest first
	saving bool
	// loading is closed when the store's snapshot is here, or cannot be.
	loading         chan struct{}
	saves, restores backoff
	refines         backoff              // saves of what was restored: that restoring works says nothing of them
	foreign         map[snapshot.ID]bool // was told
	alien           map[snapshot.ID]alien
	unrecorded      int // recordings that failed, in all
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
		cfg: cfg, boot: string(boot), wake: make(chan struct{}, 1), removal: make(chan struct{}, 1), indexed: make(chan struct{}),
		keys: map[string]*entry{}, copies: map[string]*local{}, doomed: map[snapshot.ID]*backoff{}, forgotten: map[revision]time.Time{},
	}
	c.metrics = newMetrics(c, cfg.Registerer)
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := errors.Join(c.recoverDoomed(ctx), c.recoverForgotten(ctx), c.recover(ctx)); err != nil {
		c.cancel()
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	c.work.Go(c.index)
	c.work.Go(c.storeAll)
	c.work.Go(c.removeAll)
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
		e = &entry{foreign: map[snapshot.ID]bool{}, alien: map[snapshot.ID]alien{}}
		c.keys[key] = e
	}
	return e
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

// tell reports what went wrong with a snapshot.
func (c *Catalog) tell(labels map[string]string, reason string, err error) {
	c.cfg.Log.Warn("snapshot", "reason", reason, "namespace", labels[LabelNamespace], "revision", labels[LabelRevision], "error", err)
	c.cfg.OnEvent(Event{Namespace: labels[LabelNamespace], Revision: labels[LabelRevision], Reason: reason, Err: err})
}
