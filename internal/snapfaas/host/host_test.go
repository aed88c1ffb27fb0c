package host

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

// reaper notes what it is asked to remove, and removes the cgroup.
type reaper struct {
	mu     sync.Mutex
	reaped []string
}

func (r *reaper) Reap(ctx context.Context, s sandbox.State) error {
	r.mu.Lock()
	r.reaped = append(r.reaped, s.ID)
	r.mu.Unlock()
	g, err := cgroup.Load(s.Cgroup)
	if err != nil {
		return err
	}
	return g.Delete(ctx)
}

func open(t *testing.T, base string, r Reaper) *Host {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	h, err := Open(ctx, Config{Base: base, Reaper: r})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// folders are those of tools.
func folders(t *testing.T, base string) []string {
	t.Helper()
	entries, err := os.ReadDir(base)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "skep-host-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestPlaces(t *testing.T) {
	testenv.Root(t)
	base, r := shortDir(t), &reaper{}
	h, other := open(t, base, r), open(t, base, r)
	if n := len(folders(t, base)); n != 2 {
		t.Errorf("%d folders for two tools", n)
	}
	p, err := h.Place(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Place(t.Context(), false); err != nil { // is left to Close
		t.Fatal(err)
	}
	if _, err := os.Stat(p.Dir); err != nil || p.Link.Interface == "" {
		t.Errorf("%+v, %v", p, err)
	}
	if err := p.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*Host{h, other} {
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if left := folders(t, base); len(left) > 0 || len(r.reaped) != 2 {
		t.Errorf("left behind: %q; reaped %q", left, r.reaped)
	}
}

// What a tool leaves that is killed, the next one removes.
func TestKilled(t *testing.T) {
	testenv.Root(t)
	if base := os.Getenv("SKEP_TEST_HOST"); base != "" {
		h := open(t, base, &reaper{})
		p, err := h.Place(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(base, "id"), []byte(p.ID), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = os.Stdout.Close()
		select {} // until it is killed
	}
	base, r := shortDir(t), &reaper{}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "SKEP_TEST_HOST="+base)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 1)) // it has closed it
	alive := open(t, base, r)
	if len(r.reaped) > 0 || len(folders(t, base)) != 2 {
		t.Errorf("%q was taken from a tool that lives", r.reaped)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	id, err := os.ReadFile(filepath.Join(base, "id"))
	if err != nil {
		t.Fatal(err)
	}
	next := open(t, base, r)
	if !slices.Equal(r.reaped, []string{string(id)}) || len(folders(t, base)) != 2 {
		t.Errorf("reaped %q, want %q; folders %q", r.reaped, id, folders(t, base))
	}
	for _, h := range []*Host{alive, next} {
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if left := folders(t, base); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
