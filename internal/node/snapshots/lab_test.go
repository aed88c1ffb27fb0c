package snapshots

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/internal/snapshot"
	"github.com/skep-dev/skep/internal/snapshot/backend"
	folder "github.com/skep-dev/skep/internal/snapshot/backend/local"
)

const patience = 30 * time.Second

// lab is a catalog with all it needs in a folder; it can be opened again.
type lab struct {
	*Catalog
	t   *testing.T
	dir string
	j   *journal.Journal
	mu  sync.Mutex
	all []Event
}

func open(t *testing.T, dir string, edit ...func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, dir: dir}
	var err error
	if l.j, err = journal.Open(t.Context(), filepath.Join(dir, "node.db")); err != nil {
		t.Fatal(err)
	}
	b, err := folder.Open(filepath.Join(dir, "store"), folder.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Dir: filepath.Join(dir, "local"), Journal: l.j, Patience: patience, Log: slog.New(slog.DiscardHandler),
		Store: snapshot.New(b, snapshot.Options{Log: slog.New(slog.DiscardHandler)}),
		OnEvent: func(e Event) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.all = append(l.all, e)
		},
	}
	for _, e := range edit {
		e(&cfg)
	}
	if l.Catalog, err = Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.shut)
	return l
}

func (l *lab) shut() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		l.t.Error(err)
	}
	_ = l.j.Close()
}

func (l *lab) events(reason string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, e := range l.all {
		if e.Reason == reason {
			n++
		}
	}
	return n
}

// objects are those of the store in dir that are content.
func objects(t *testing.T, dir, prefix string) map[string]bool {
	t.Helper()
	b, err := folder.Open(filepath.Join(dir, "store"), folder.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	err = b.List(t.Context(), prefix, func(i backend.Info) error {
		if snapshot.Cacheable(i.Name) || strings.HasPrefix(i.Name, "manifests/") {
			all[i.Name] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ofVersion makes a snapshot in a store one of which something is a later
// version's, and returns its ID.
func ofVersion(t *testing.T, dir string, id snapshot.ID, what string) snapshot.ID {
	t.Helper()
	b, err := folder.Open(dir, folder.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	take := func(name string) []byte {
		data, err := backend.ReadAll(t.Context(), b, name, 1<<30)
		if err == nil {
			err = b.Delete(t.Context(), name)
		}
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	put := func(name string, data []byte) {
		if err := b.Put(t.Context(), name, bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	text := take("manifests/" + id.Hex())
	m, err := snapshot.DecodeManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	ref, _ := m.Layer("memory")
	switch what {
	case "manifest":
		text = bytes.Replace(text, []byte(`"version": 1`), []byte(`"version": 2`), 1)
	case "layer":
		table := take("layers/" + ref.Digest.Hex())
		table[7]++ // after the magic
		d := snapshot.DigestOf(table)
		put("layers/"+d.Hex(), table)
		text = bytes.ReplaceAll(text, []byte(ref.Digest.Hex()), []byte(d.Hex()))
	case "chunk":
		err := b.List(t.Context(), "chunks/", func(i backend.Info) error {
			data := take(i.Name)
			data[3], data[len(data)-1] = 9, data[len(data)-1]^1
			put(i.Name, data)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	put("manifests/"+snapshot.DigestOf(text).Hex(), text)
	return snapshot.DigestOf(text)
}

func want(key string, edit ...func(*snapshot.Requirements)) Want {
	w := Want{Namespace: "ns", Service: "s", Revision: "s-" + key, Key: key, Policy: "after-ready", Requirements: snapshot.Requirements{
		Driver: snapshot.Component{Name: "d", Version: "1"}, RootImage: "sha256:1",
		CPU: snapshot.CPU{Arch: "amd64", Model: "m", Features: []string{"a", "b"}}, MemoryBytes: 1 << 20, VCPUs: 1,
	}}
	for _, e := range edit {
		e(&w.Requirements)
	}
	return w
}

// content writes a snapshot with sparse memory.
func content(text string) func(context.Context, string, bool) error {
	return func(_ context.Context, dir string, _ bool) error {
		f, err := os.Create(filepath.Join(dir, "memory"))
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(strings.Repeat(text, 5000)), 512<<10); err != nil {
			return err
		}
		return errors.Join(f.Truncate(1<<20), os.WriteFile(filepath.Join(dir, "state"), []byte(text), 0o600),
			os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600))
	}
}

func (l *lab) save(key, text string) {
	l.t.Helper()
	if err := l.Create(l.t.Context(), want(key), CreateOptions{}, content(text)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) stored(key string) snapshot.ID {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	id, err := l.Stored(ctx, key)
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// find takes a snapshot into use, which must have the text, or none if "".
func (l *lab) find(key, text string) *Use {
	l.t.Helper()
	u := l.Find(l.t.Context(), want(key), false)
	if text == "" {
		if u != nil {
			l.t.Fatalf("%s: found %v, want none", key, u.Image)
		}
		return nil
	}
	if u == nil {
		l.t.Fatalf("%s: found nothing, want %q", key, text)
	}
	l.t.Cleanup(u.Release)
	b, err := os.ReadFile(u.Image.File("state"))
	if err != nil || string(b) != text {
		l.t.Fatalf("%s: state %q, %v, want %q", key, b, err, text)
	}
	memory, err := os.ReadFile(u.Image.File("memory"))
	if err != nil || len(memory) != 1<<20 || !strings.HasPrefix(string(memory[512<<10:]), text) {
		l.t.Fatalf("%s: memory of %d bytes, %v", key, len(memory), err)
	}
	return u
}

// locked changes what the catalog knows.
func (l *lab) locked(f func()) {
	l.Catalog.mu.Lock()
	defer l.Catalog.mu.Unlock()
	f()
}

func (l *lab) folders() int {
	l.t.Helper()
	all, err := os.ReadDir(filepath.Join(l.dir, "local"))
	if err != nil {
		l.t.Fatal(err)
	}
	return len(all)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
