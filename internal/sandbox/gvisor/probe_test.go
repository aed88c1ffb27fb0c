package gvisor

import (
	"context"
	"errors"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestProbe(t *testing.T) {
	testenv.Root(t)
	if err := New(Config{}).Probe(t.Context(), scratch(t)); err != nil {
		t.Fatal(err)
	}
}

func TestProbeCancelled(t *testing.T) {
	testenv.Root(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(Config{}).Probe(ctx, scratch(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

// BenchmarkProbe is a whole life of a sandbox that has nothing to do.
func BenchmarkProbe(b *testing.B) {
	testenv.Root(b)
	for b.Loop() {
		if err := New(Config{}).Probe(b.Context(), scratch(b)); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTaskLimitValues(t *testing.T) {
	for _, bad := range []string{"", "0", "-1", "many"} {
		if err := limitTasks(bad); err == nil {
			t.Errorf("limitTasks(%q): no error", bad)
		}
	}
}

func scratch(t testing.TB) sandbox.State {
	id := sandbox.NewID()
	return sandbox.State{ID: id, Dir: t.TempDir(), Cgroup: "skep-probe-" + id}
}
