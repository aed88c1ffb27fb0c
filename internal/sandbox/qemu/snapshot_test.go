package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/testenv"
)

// lab makes sandboxes of one driver, of one image.
type lab struct {
	t     testing.TB
	d     *qemu.Driver
	n     *network.Manager
	node  string
	image string
}

func newLab(ctx context.Context, t testing.TB) *lab {
	t.Helper()
	testenv.Root(t)
	testenv.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	l := &lab{t: t, d: newDriver(t, qemu.AccelAuto), image: guestImage(t)}
	l.n, l.node = newNetwork(ctx, t)
	return l
}

// spec makes a sandbox's spec; what it holds is freed at the test's end.
func (l *lab) spec(ctx context.Context, args ...string) *sandbox.Spec {
	l.t.Helper()
	lease, err := l.n.Acquire(ctx, network.Options{Kind: sandbox.LinkTAP})
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(l.t.TempDir(), "out"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		out.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := lease.Release(ctx); err != nil {
			l.t.Error(err)
		}
	})
	id := sandbox.NewID()
	return &sandbox.Spec{
		ID: id, Dir: l.t.TempDir(), Rootfs: l.image, Hostname: "h-" + id,
		Process:   sandbox.Process{Args: append([]string{"/guest"}, args...)},
		Resources: sandbox.Resources{MemoryBytes: 128 << 20},
		Link:      lease.Link(), Cgroup: "skep-" + l.node + "/" + id, Stdout: out, Stderr: out,
	}
}

// boot starts a sandbox that is destroyed at the test's end.
func (l *lab) boot(ctx context.Context, spec *sandbox.Spec) sandbox.Sandbox {
	l.t.Helper()
	sb, err := l.d.Create(ctx, spec)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.start(ctx, sb)
}

func (l *lab) restore(ctx context.Context, spec *sandbox.Spec, r sandbox.Restore) sandbox.Sandbox {
	l.t.Helper()
	sb, err := l.d.Prepare(ctx, spec, r)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.start(ctx, sb)
}

func (l *lab) start(ctx context.Context, sb sandbox.Sandbox) sandbox.Sandbox {
	l.t.Helper()
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := sb.Destroy(ctx); err != nil {
			l.t.Error(err)
		}
	})
	if err := sb.Start(ctx); err != nil {
		l.t.Fatal(err)
	}
	return sb
}

func (l *lab) save(ctx context.Context, sb sandbox.Sandbox, o sandbox.SaveOptions) sandbox.Image {
	l.t.Helper()
	o.Dir = l.t.TempDir()
	if err := sb.(sandbox.Saver).Save(ctx, o); err != nil {
		l.t.Fatal(err)
	}
	return sandbox.Image{Dirs: []string{o.Dir}}
}

// get asks the guest's web server.
func get(ctx context.Context, sb sandbox.Sandbox, path string) (string, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return sb.Dial(ctx, 8080)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://function"+path, nil)
	if err != nil {
		return "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(res.Body)
	return string(body), errors.Join(err, res.Body.Close())
}

func (l *lab) get(ctx context.Context, sb sandbox.Sandbox, path, want string) {
	l.t.Helper()
	if got, err := get(ctx, sb, path); err != nil || got != want {
		l.t.Errorf("%s: %q, %v; want %q", path, got, err, want)
	}
}

// TestSnapshot has one guest go through everything, as booting takes longest.
func TestSnapshot(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	l := newLab(ctx, t)
	spec := l.spec(ctx)
	disk := filepath.Join(t.TempDir(), "disk")
	writeFile(t, disk, "old disk", 1<<20)
	spec.Disks = []string{disk}
	sb := l.boot(ctx, spec)
	if err := sb.(sandbox.PortWaiter).WaitPort(ctx, 8080); err != nil {
		t.Fatal(err)
	}
	l.get(ctx, sb, "/count", "1")
	l.get(ctx, sb, "/head?path=/dev/vdb", "1048576 old disk")
	begin := time.Now()
	base := l.save(ctx, sb, sandbox.SaveOptions{})
	t.Logf("saved in %v", time.Since(begin))
	l.get(ctx, sb, "/count", "2")

	clone := func(r sandbox.Restore, disk string) sandbox.Sandbox {
		t.Helper()
		spec := l.spec(ctx)
		spec.Disks = []string{disk}
		begin := time.Now()
		sb := l.restore(ctx, spec, r)
		t.Logf("restored in %v: %v", time.Since(begin), sb.Phases())
		l.get(ctx, sb, "/head?path=/etc/hostname", fmt.Sprintf("%d %s", len(spec.Hostname)+1, spec.Hostname[:8]))
		return sb
	}
	ws := filepath.Join(t.TempDir(), "ws")
	t.Run("Record", func(t *testing.T) {
		rec := clone(sandbox.Restore{Image: base, Record: true}, disk)
		l.get(ctx, rec, "/count", "2")
		if err := rec.(sandbox.Recorder).Recorded(ctx, ws); err != nil {
			t.Fatal(err)
		}
		set, err := pager.OpenWorkingSet(ws, false)
		if err != nil {
			t.Fatal(err)
		}
		n, zero := set.Pages()
		t.Logf("working set: %d pages, %d of zeros", n, zero)
		if err := set.Close(); err != nil || n < 100 {
			t.Errorf("%d pages, %v", n, err)
		}
		base.WorkingSet = ws
		// A snapshot of one whose memory is not all there yet.
		whole := l.save(ctx, rec, sandbox.SaveOptions{})
		l.get(ctx, rec, "/count", "3")
		l.get(ctx, clone(sandbox.Restore{Image: whole, Mode: sandbox.RestorePager}, disk), "/count", "3")
	})
	for _, mode := range l.d.Capabilities().RestoreModes {
		t.Run(string(mode), func(t *testing.T) {
			sb := clone(sandbox.Restore{Image: base, Mode: mode}, disk)
			l.get(ctx, sb, "/count", "2")
			l.get(ctx, sb, "/head?path=/dev/vdb", "1048576 old disk")
			diff := l.save(ctx, sb, sandbox.SaveOptions{Diff: true})
			diff.Dirs = append(diff.Dirs, base.Dirs...)
			l.get(ctx, sb, "/count", "3")
			l.get(ctx, clone(sandbox.Restore{Image: diff, Mode: mode}, disk), "/count", "3")
		})
	}
	t.Run("NewDisk", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "other")
		writeFile(t, other, "new disk", 2<<20)
		sb := clone(sandbox.Restore{Image: base}, other)
		l.get(ctx, sb, "/head?path=/dev/vdb", "2097152 new disk")
	})
}

func writeFile(t testing.TB, path, head string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, []byte(head), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}
