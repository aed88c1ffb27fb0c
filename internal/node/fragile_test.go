package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/runc"
	"github.com/skep-dev/skep/internal/snapshot"
	"github.com/skep-dev/skep/internal/snapshot/backend/memory"
)

// fragile is a driver whose snapshots fail as a test wants. Its sandboxes are
// runc's, real ones; what is restored is in truth booted.
type fragile struct {
	sandbox.Driver
	mu      sync.Mutex
	save    func(context.Context, *fragileBox) error // nil: it works
	prepare error                                    // of Prepare
	start   error                                    // of Start after Prepare
	hook    bool                                     // the hook of what is restored fails
	creates int
	saves   int
}

var (
	_ sandbox.Snapshotter = (*fragile)(nil)
	_ sandbox.Saver       = (*fragileBox)(nil)
)

func (d *fragile) Name() string { return "fragile" }

func (d *fragile) Capabilities() sandbox.Capabilities {
	c := d.Driver.Capabilities()
	c.Snapshot, c.RestoreModes = true, []sandbox.RestoreMode{sandbox.RestoreMap}
	return c
}

func (d *fragile) Compatibility(context.Context, *sandbox.Spec) (sandbox.Compatibility, error) {
	return sandbox.Compatibility{Version: "1", MemoryBytes: 128 << 20, VCPUs: 1}, nil
}

func (d *fragile) Create(ctx context.Context, spec *sandbox.Spec) (sandbox.Sandbox, error) {
	d.mu.Lock()
	d.creates++
	d.mu.Unlock()
	b, err := d.Driver.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &fragileBox{Sandbox: b, d: d}, nil
}

func (d *fragile) Prepare(ctx context.Context, spec *sandbox.Spec, r sandbox.Restore) (sandbox.Sandbox, error) {
	d.mu.Lock()
	prepare, start, hook := d.prepare, d.start, d.hook
	d.mu.Unlock()
	if _, err := os.Stat(r.Image.File(sandbox.FileMemory)); err != nil {
		return nil, err
	}
	if prepare != nil {
		return nil, prepare
	}
	s := *spec
	if hook {
		s.Process.Env = append(slices.Clone(s.Process.Env), "NODE_TEST_HOOK=fails")
	}
	b, err := d.Driver.Create(ctx, &s)
	if err != nil {
		return nil, err
	}
	return &fragileBox{Sandbox: b, d: d, start: start, restored: true}, nil
}

func (d *fragile) counts() (creates, saves int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.creates, d.saves
}

func (d *fragile) set(edit func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	edit()
}

type fragileBox struct {
	sandbox.Sandbox
	d        *fragile
	start    error
	restored bool
}

func (b *fragileBox) Start(ctx context.Context) error {
	if b.start != nil {
		return b.start
	}
	err := b.Sandbox.Start(ctx)
	for err == nil && b.restored { // as it would be
		var c net.Conn
		if c, err = b.Dial(ctx, 8080); err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
			err = nil
		}
	}
	return err
}

func (b *fragileBox) Save(ctx context.Context, o sandbox.SaveOptions) error {
	b.d.mu.Lock()
	b.d.saves++
	save := b.d.save
	b.d.mu.Unlock()
	if save != nil {
		if err := save(ctx, b); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(o.Dir, sandbox.FileMemory), make([]byte, 4096), 0o600),
		os.WriteFile(filepath.Join(o.Dir, sandbox.FileState), []byte("state"), 0o600))
}

// clock is the catalog's.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// lab is a node with a fragile driver.
type lab struct {
	*Node
	*fragile
	clock  *clock
	mu     sync.Mutex
	events []string // reasons
}

func newLab(t *testing.T) *lab {
	l := &lab{fragile: &fragile{Driver: runc.New(runc.Config{})}, clock: &clock{now: time.Now()}}
	l.Node, _ = newNode(t, func(cfg *Config) {
		log := slog.New(slog.DiscardHandler)
		catalog, err := snapshots.Open(t.Context(), snapshots.Config{
			Dir: t.TempDir(), Store: snapshot.New(memory.New(), snapshot.Options{Log: log}), Journal: cfg.Journal, Log: log, Now: l.clock.Now,
			OnEvent: func(e snapshots.Event) {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.events = append(l.events, e.Reason)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := catalog.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		cfg.Drivers, cfg.Snapshots = []sandbox.Driver{l.fragile}, catalog
	})
	return l
}

func (l *lab) told() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

func (l *lab) wantTold(t *testing.T, want ...string) {
	t.Helper()
	if got := l.told(); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// start launches an instance with these snapshot options, and checks that it
// takes a request.
func (l *lab) start(t *testing.T, o snapshots.Options) *Instance {
	t.Helper()
	i, err := l.Launch(t.Context(), launch("serve", func(x *Launch) { x.Driver, x.Snapshot = "fragile", o }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
	})
	wantServes(t, i)
	return i
}

func wantServes(t *testing.T, i *Instance) {
	t.Helper()
	if err := i.tell(t.Context(), snapshots.Hook{Path: "/hook"}); err != nil {
		t.Errorf("a request: %v", err)
	}
}
