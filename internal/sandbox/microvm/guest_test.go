package microvm

import (
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// What a guest says of a process's end is brought within bounds.
func TestExit(t *testing.T) {
	for _, test := range []struct {
		in           *agentpb.WaitResponse
		code, signal int
	}{
		{&agentpb.WaitResponse{Code: 3}, 3, 0},
		{&agentpb.WaitResponse{Code: 137, Signal: 9}, 137, 9},
		{&agentpb.WaitResponse{Code: 1 << 31, Signal: 1 << 31}, 0, 0},
	} {
		if e := exit(test.in); e.Code != test.code || e.Signal != test.signal || e.At.IsZero() {
			t.Errorf("%v: %+v", test.in, e)
		}
	}
}

func TestParseCPU(t *testing.T) {
	model, features := parseCPU("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nstepping\t: 7\nflags\t\t: fpu vme fpu avx\n\nprocessor\t: 1\nflags\t: other\n")
	if model != "GenuineIntel 6 85 7" || strings.Join(features, " ") != "avx fpu vme" {
		t.Errorf("%q, %q", model, features)
	}
}

func TestVCPUs(t *testing.T) {
	for millis, want := range map[int64]int64{0: 1, 1: 1, 1000: 1} {
		if got := VCPUs(millis); got != want {
			t.Errorf("%d: %d, want %d", millis, got, want)
		}
	}
}
