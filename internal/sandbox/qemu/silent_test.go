package qemu_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// TestSilent has a machine stand still when it has come up, before its agent
// has been told anything: it is booted again.
func TestSilent(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	l := newLab(ctx, t)
	// Between the agent's first sign of life and its being told who it is are
	// some hundred milliseconds; where exactly depends on the host.
	for _, wait := range []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, 30 * time.Millisecond, time.Second} {
		first, sb := l.freeze(ctx, l.spec(ctx), wait)
		if sb == nil {
			continue
		}
		if err := syscall.Kill(first, 0); err == nil {
			t.Logf("booted before it was made to stand still, %v after it listened", wait)
			continue
		}
		l.start(ctx, sb)
		if err := sb.(sandbox.PortWaiter).WaitPort(ctx, 8080); err != nil {
			t.Fatal(err)
		}
		l.get(ctx, sb, "/count", "1")
		return
	}
	t.Error("no machine was booted again")
}

// freeze creates a sandbox, and stops its first machine's process when its
// agent has listened for a while. The sandbox is nil if it was too early.
func (l *lab) freeze(ctx context.Context, spec *sandbox.Spec, wait time.Duration) (first int, sb sandbox.Sandbox) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		var err error
		sb, err = l.d.Create(ctx, spec)
		done <- err
	}()
	addr := net.JoinHostPort(spec.Link.Address.IP.String(), fmt.Sprint(agent.Port))
	for {
		c, err := netns.Dial(ctx, spec.Link.DialNS, "tcp", addr)
		if err == nil {
			_ = c.Close()
			break
		}
		if ctx.Err() != nil {
			l.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // nobody tells when it listens
	}
	first = machineOf(l.t, spec.ID)
	time.Sleep(wait) // to hit it while it is told who it is
	if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
		l.t.Fatal(err)
	}
	if err := <-done; err != nil {
		l.t.Logf("stopped %v after it listened: %v", wait, err)
		return first, nil
	}
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := sb.Destroy(ctx); err != nil {
			l.t.Error(err)
		}
	})
	return first, sb
}

// machineOf is the process that runs a sandbox's machine.
func machineOf(t testing.TB, id string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(bytes.Split(b, []byte{0}), func(arg []byte) bool { return string(arg) == "guest=skep-"+id }) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no process runs the machine of %s", id)
	return 0
}
