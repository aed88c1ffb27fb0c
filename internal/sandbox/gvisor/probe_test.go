package gvisor

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

func TestProbe(t *testing.T) {
	testenv.Root(t)
	if err := New(Config{}).Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestProbeCancelled(t *testing.T) {
	testenv.Root(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(Config{}).Probe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

// BenchmarkProbe is a whole life of a sandbox that has nothing to do.
func BenchmarkProbe(b *testing.B) {
	testenv.Root(b)
	for b.Loop() {
		if err := New(Config{}).Probe(b.Context()); err != nil {
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

func TestProbeProgram(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		b, err := probeProgram(arch)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if f.Machine != machine || len(f.Progs) != 1 || len(b) != blockSize {
			t.Errorf("%s: %+v, %d bytes", arch, f.FileHeader, len(b))
		}
	}
	if _, err := probeProgram("pdp11"); err == nil {
		t.Error("no error for an unknown machine")
	}
}
