package snapshots

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapshot"
	"github.com/skep-dev/skep/internal/snapshot/backend"
	folder "github.com/skep-dev/skep/internal/snapshot/backend/local"
)

// away is a backend that cannot be reached at times.
type away struct {
	backend.Backend
	gone *atomic.Bool
}

var errAway = errors.New("no route to the store")

func (a away) err() error {
	if a.gone.Load() {
		return errAway
	}
	return nil
}

func (a away) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := a.err(); err != nil {
		return err
	}
	return a.Backend.Put(ctx, name, r, size)
}

func (a away) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Backend.Get(ctx, name, offset, length)
}

func (a away) Stat(ctx context.Context, name string) (backend.Info, error) {
	if err := a.err(); err != nil {
		return backend.Info{}, err
	}
	return a.Backend.Stat(ctx, name)
}

func (a away) List(ctx context.Context, prefix string, fn func(backend.Info) error) error {
	if err := a.err(); err != nil {
		return err
	}
	return a.Backend.List(ctx, prefix, fn)
}

func (a away) Delete(ctx context.Context, name string) error {
	if err := a.err(); err != nil {
		return err
	}
	return a.Backend.Delete(ctx, name)
}

// hold is a backend that keeps the first manifest from being written until it
// is let go.
type hold struct {
	backend.Backend
	once         *sync.Once
	waits, letGo chan struct{}
}

func (h hold) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if strings.HasPrefix(name, "manifests/") {
		h.once.Do(func() { close(h.waits); <-h.letGo })
	}
	return h.Backend.Put(ctx, name, r, size)
}

// TestSupersededWhileStored: one that is being stored when the next is made
// does not stay in the store for ever.
func TestSupersededWhileStored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := hold{once: &sync.Once{}, waits: make(chan struct{}), letGo: make(chan struct{})}
	l := open(t, dir, func(c *Config) {
		b, err := folder.Open(filepath.Join(dir, "store"), folder.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		h.Backend = b
		c.Store = snapshot.New(h, snapshot.Options{Log: slog.New(slog.DiscardHandler)})
	})
	l.save("a", "one")
	<-h.waits
	if err := l.Create(t.Context(), want("a"), CreateOptions{Force: true}, content("two")); err != nil {
		t.Fatal(err)
	}
	close(h.letGo)
	id := l.stored("a")
	eventually(t, "the first to go", func() bool {
		left := objects(t, dir, "manifests")
		return len(left) == 1 && left["manifests/"+id.Hex()]
	})
}

// TestForgetUnseen: the store is away, and there is nothing here of what it has.
func TestForgetUnseen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var gone atomic.Bool
	edit := func(c *Config) {
		b, err := folder.Open(filepath.Join(dir, "store"), folder.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		c.Store = snapshot.New(away{b, &gone}, snapshot.Options{Log: slog.New(slog.DiscardHandler)})
	}
	l := open(t, dir, edit)
	l.save("a", "one")
	l.stored("a")
	l.shut()
	if err := os.RemoveAll(filepath.Join(dir, "local")); err != nil {
		t.Fatal(err)
	}
	gone.Store(true)
	l = open(t, dir, edit)
	l.Forget("ns", "s-a")
	l.shut()
	gone.Store(false)
	l = open(t, dir, edit)
	eventually(t, "it to go", func() bool { return len(objects(t, dir, "manifests")) == 0 })
	// Another one of the same name is none of that.
	l.save("a", "two")
	id := l.stored("a")
	if err := l.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Store().Describe(t.Context(), id); err != nil {
		t.Error(err)
	}
	l.find("a", "two").Release()
	if records, err := l.j.List(t.Context(), kindForgotten); err != nil || len(records) > 0 {
		t.Errorf("records: %v, %v", records, err)
	}
}

// TestForgetWhileAway: a revision's snapshots go also when the store is away
// at that moment, and longer than this process lives.
func TestForgetWhileAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var gone atomic.Bool
	var mu sync.Mutex
	now := time.Now()
	edit := func(c *Config) {
		b, err := folder.Open(filepath.Join(dir, "store"), folder.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		c.Store = snapshot.New(away{b, &gone}, snapshot.Options{Log: slog.New(slog.DiscardHandler)})
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	}
	l := open(t, dir, edit)
	l.save("a", "one")
	l.save("b", "two")
	l.stored("a")
	kept := l.stored("b")
	tried := func() bool {
		n := 0
		l.locked(func() {
			for _, b := range l.doomed {
				n += b.failures
			}
		})
		return n > 0
	}
	gone.Store(true)
	l.Forget("ns", "s-a")
	eventually(t, "a try", tried)
	l.shut()
	l = open(t, dir, edit)
	eventually(t, "another process's try", tried)
	// It is back. Until it is removed, nothing is started from the snapshot.
	gone.Store(false)
	if err := l.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.find("a", "")
	mu.Lock()
	now = now.Add(maxPause)
	mu.Unlock()
	l.removal <- struct{}{}
	eventually(t, "it to go", func() bool { return len(objects(t, dir, "manifests")) == 1 })
	eventually(t, "no record", func() bool {
		records, err := l.j.List(t.Context(), kindDoomed)
		return err == nil && len(records) == 0
	})
	if _, err := l.Store().Describe(t.Context(), kept); err != nil {
		t.Errorf("the other one: %v", err)
	}
}
