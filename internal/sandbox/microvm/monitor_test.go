package microvm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

// monitor follows a shell script, whose console is its standard output.
func monitor(t *testing.T, script string) *Monitor {
	t.Helper()
	m, _ := monitorIn(t, script)
	return m
}

func monitorIn(t *testing.T, script string) (*Monitor, *cgroup.Group) {
	t.Helper()
	testenv.Root(t)
	g, err := cgroup.Create("skep-monitor-"+sandbox.NewID(), cgroup.Limits{PIDs: 10})
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", script)
	m := NewMonitor("the shell", cmd)
	cmd.Env = os.Environ()
	cmd.Stdout = w
	if _, err := cmd.StdinPipe(); err != nil { // that never says anything
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.End()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Delete(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := m.Follow(r, g); err != nil {
		select { // unless it has ended already
		case <-m.Dead():
		case <-time.After(10 * time.Second):
			t.Fatal(err)
		}
	}
	return m, g
}

func TestMonitor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := monitor(t, "echo booting; echo '"+agent.ReadyMessage+"'; echo trouble >&2; read x")
	if err := m.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Explain().Error(); !strings.Contains(err, "does not answer") || !strings.Contains(err, "booting") {
		t.Errorf("of one that lives: %s", err)
	}
	m.Fail(errors.New("first reason"))
	m.Fail(errors.New("second reason"))
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	text := m.Explain().Error()
	for _, want := range []string{"ended; signal: killed", "first reason", "the shell says: trouble"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	if strings.Contains(text, "second") || m.OutOfMemory() {
		t.Errorf("%q, out of memory %v", text, m.OutOfMemory())
	}
}

// A machine that ends instead of coming up says why.
func TestMonitorEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := monitor(t, "echo '"+agent.FailedMessage+" no disk'; exit 3")
	if err := m.AwaitReady(ctx); err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("error is %v", err)
	}
	if err := m.AwaitReady(ctx); errors.Is(err, ErrTimer) {
		t.Errorf("error is %v, of a disk", err)
	}
	m = monitor(t, "echo '"+agent.FailedMessage+" "+agent.ErrTimer.Error()+": processor 0 has none'")
	if err := m.AwaitReady(ctx); !errors.Is(err, ErrTimer) || !strings.Contains(err.Error(), "processor 0") {
		t.Errorf("error is %v, want %v", err, ErrTimer)
	}
}

// A machine that runs in a circle is not waited for.
func TestAwaitReady(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m, g := monitorIn(t, "while :; do :; done")
	if err := awaitReady(ctx, m, g, 50*time.Millisecond); !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), "not come up") {
		t.Errorf("error is %v, want %v", err, ErrSilent)
	}
	m, g = monitorIn(t, "echo '"+agent.ReadyMessage+"'; read x")
	if err := awaitReady(ctx, m, g, time.Minute); err != nil {
		t.Error(err)
	}
	m, g = monitorIn(t, "read x")
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if err := awaitReady(short, m, g, time.Minute); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrSilent) {
		t.Errorf("error is %v, want %v", err, context.DeadlineExceeded)
	}
}
