package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/testenv"
)

// guestImage makes an image that holds nothing but testdata/guest.
func guestImage(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	bin, img := filepath.Join(dir, "guest"), filepath.Join(dir, "root.erofs")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := erofs.Create(f)
	g, err := w.Create("/guest")
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(g, bytes.NewReader(program))
	if err := errors.Join(err, g.Chmod(0o755), g.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	return img
}

// newNetwork makes the networks of one test, and removes them and the cgroup
// with the same node ID at its end.
func newNetwork(ctx context.Context, t testing.TB) (n *network.Manager, node string) {
	t.Helper()
	node = sandbox.NewID()[:8]
	n, err := network.New(ctx, network.Config{Dir: t.TempDir(), NodeID: node})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Error(err)
		}
		g, err := cgroup.Load("skep-" + node)
		if err == nil {
			err = g.DeleteIfEmpty()
		}
		if err != nil {
			t.Error(err)
		}
	})
	return n, node
}

// run runs the guest with arguments to its end.
func run(t *testing.T, args ...string) (sandbox.Exit, string) {
	t.Helper()
	testenv.Root(t)
	testenv.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	d := newDriver(t, qemu.AccelAuto)
	n, node := newNetwork(ctx, t)
	lease, err := n.Acquire(ctx, network.Options{Kind: sandbox.LinkTAP})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lease.Release(ctx); err != nil {
			t.Error(err)
		}
	}()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	sb, err := d.Create(ctx, &sandbox.Spec{
		ID: sandbox.NewID(), Dir: t.TempDir(), Rootfs: guestImage(t),
		Process:   sandbox.Process{Args: append([]string{"/guest"}, args...)},
		Resources: sandbox.Resources{MemoryBytes: 128 << 20},
		Link:      lease.Link(), Cgroup: "skep-" + node + "/guest", Stdout: out, Stderr: out,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sb.Destroy(ctx); err != nil {
			t.Error(err)
		}
	}()
	if err := sb.Start(ctx); err != nil {
		t.Fatal(err)
	}
	e, err := sb.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return e, string(text)
}

// The kernel and the agent do not eat into the function's memory.
func TestMemoryIsTheFunctions(t *testing.T) {
	if e, out := run(t, "take", "112"); e.Code != 0 || out != "took 112\n" {
		t.Errorf("112 of 128 MB: %+v, %q", e, out)
	}
}

// A function that runs as root is confined all the same.
func TestRootIsConfined(t *testing.T) {
	e, out := run(t, "attack")
	// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE.
	const want = "pid 1\ncmdline 0\nCapBnd: 00000000000004fb\nNoNewPrivs: 1\ndone\n"
	if e.Code != 0 || out != want {
		t.Errorf("%+v, %q", e, out)
	}
}
