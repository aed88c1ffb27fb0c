package qemu_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/network"
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

func TestSnapshot(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	l := newLab(ctx, t)
	sb := l.boot(ctx, l.spec(ctx))
	if err := sb.(sandbox.PortWaiter).WaitPort(ctx, 8080); err != nil {
		t.Fatal(err)
	}
	l.get(ctx, sb, "/", "hello")
	begin := time.Now()
	img := l.save(ctx, sb, sandbox.SaveOptions{})
	t.Logf("saved in %v", time.Since(begin))
	l.get(ctx, sb, "/", "hello")
	for range 3 {
		begin = time.Now()
		spec := l.spec(ctx)
		begin = time.Now()
		clone := l.restore(ctx, spec, sandbox.Restore{Image: img})
		at := time.Since(begin)
		l.get(ctx, clone, "/", "hello")
		t.Logf("restored %v, answered after %v; %v", at, time.Since(begin), clone.Phases())
	}
}
