package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/internal/agent"
)

// timerList is the kernel's own account of its timers.
const timerList = "/proc/timer_list"

// apicTimer is the kernel's name of the timer whose frequency it measures.
const apicTimer = "lapic"

// checkTimers fails unless each processor has a timer that fires about when it
// should. The kernel measures how fast the processors' own timer counts against
// their clock, once, for 100 ms. A host that runs an emulated processor late
// at the beginning or the end of that has the kernel find too low or too high a
// frequency, and where next to nothing is left of the 100 ms, give the timer up
// ("APIC frequency too slow, disabling apic timer"). Such a machine gets as far
// as to listen, and its kernel takes connections in; but the Go runtime here
// waits for a moment now and then, and without a timer that is for ever.
// wantKHz is the true frequency, 0 if it is not known.
func checkTimers(path string, wantKHz uint64) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without it
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	timers, err := readTimers(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	for _, t := range timers {
		if err := t.check(wantKHz); err != nil {
			return err
		}
	}
	return nil
}

// timer is a processor's, as the kernel knows it.
type timer struct {
	cpu, name   string
	mult, shift uint64 // it counts mult>>shift times in a nanosecond
}

func (t timer) check(wantKHz uint64) error {
	if t.name == "<NULL>" {
		return fmt.Errorf("%w: processor %s has none", agent.ErrTimer, t.cpu)
	}
	if wantKHz == 0 || t.name != apicTimer || t.shift >= 64 {
		return nil
	}
	// Off by a half at most. Where it fires too early the kernel only sets it
	// again, but each time for what is left; where it fires late, all do.
	got := t.mult * 1e6 >> t.shift
	if 2*got < wantKHz || 2*got > 3*wantKHz {
		return fmt.Errorf("%w: processor %s's counts at %d kHz, the kernel says %d", agent.ErrTimer, t.cpu, wantKHz, got)
	}
	return nil
}

// readTimers reads the timers of processors from /proc/timer_list.
func readTimers(r io.Reader) ([]timer, error) {
	var timers []timer
	var t *timer // whose lines are read
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "Tick Device":
			t = nil
		case "Per CPU device":
			timers = append(timers, timer{cpu: value})
			t = &timers[len(timers)-1]
		case "Clock Event Device":
			if t != nil {
				t.name = value
			}
		case "mult":
			if t != nil {
				t.mult, _ = strconv.ParseUint(value, 10, 32)
			}
		case "shift":
			if t != nil {
				t.shift, _ = strconv.ParseUint(value, 10, 32)
			}
		}
	}
	return timers, lines.Err()
}
