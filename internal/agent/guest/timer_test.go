package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/internal/agent"
)

// device is a processor's in /proc/timer_list.
func device(cpu int, name string, mult, shift uint64) string {
	head := fmt.Sprintf("Tick Device: mode:     1\nPer CPU device: %d\nClock Event Device: %s\n", cpu, name)
	if name == "<NULL>" {
		return head
	}
	return head + fmt.Sprintf(" max_delta_ns:   34359738\n min_delta_ns:   1000\n mult:           %d\n shift:          %d\n mode:           3\n\n retries:        5\nWakeup Device: <NULL>\n\n", mult, shift)
}

func TestCheckTimers(t *testing.T) {
	t.Parallel()
	const (
		khz  = 62500
		good = khz << 32 / 1_000_000 // as Linux computes it: cycles in a nanosecond, shifted
		list = "Timer List Version: v0.9\nHRTIMER_MAX_CLOCK_BASES: 8\n\ncpu: 0\n clock 0:\n  .base: 0\nactive timers:\n" +
			" #0: <0>, tick_sched_timer, S:01\n\n"
		broadcast = "Tick Device: mode:     1\nBroadcast device\nClock Event Device: <NULL>\ntick_broadcast_mask: 0\n\n"
	)
	for _, test := range []struct {
		name, text string
		khz        uint64
		ok         bool
	}{
		{"good", device(0, "lapic", good, 32), khz, true},
		{"two good", broadcast + device(0, "lapic", good, 32) + device(1, "lapic", good, 32), khz, true},
		{"none", device(0, "<NULL>", 0, 0), khz, false},
		{"none, frequency unknown", broadcast + device(0, "<NULL>", 0, 0), 0, false},
		{"none on the second", device(0, "lapic", good, 32) + device(1, "<NULL>", 0, 0), khz, false},
		{"a dummy", device(0, "lapic", 1, 32), khz, false}, // with two processors
		{"early by a quarter", device(0, "lapic", good*3/4, 32), khz, true},
		{"late by a quarter", device(0, "lapic", good*5/4, 32), khz, true},
		{"far too early", device(0, "lapic", good*4/10, 32), khz, false},
		{"far too late", device(0, "lapic", good*16/10, 32), khz, false},
		{"off, frequency unknown", device(0, "lapic", good/4, 32), 0, true},
		{"not measured", device(0, "lapic-deadline", 8388608, 25), khz, true},
		{"nothing", "", khz, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "timer_list")
			if err := os.WriteFile(path, []byte(list+test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := checkTimers(path, test.khz); test.ok != (err == nil) || err != nil && !errors.Is(err, agent.ErrTimer) {
				t.Errorf("error is %v", err)
			}
		})
	}
	if err := checkTimers(filepath.Join(t.TempDir(), "none"), khz); err != nil {
		t.Errorf("a kernel without the file: %v", err)
	}
}
