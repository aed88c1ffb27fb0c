package cgroup

import (
	"context"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/internal/cgroup/stall"
)

// used fills the files of a group that has done nothing but bring pages back,
// for so many times stall.Time.
func used(t *testing.T, dir, limit string, times string) {
	put(t, dir, map[string]string{
		"memory.max": limit, "memory.current": "50000000\n",
		"memory.stat":     "inactive_file 100000\nactive_file 0\npgmajfault " + times + "0000\n",
		"memory.pressure": "full avg10=0.00 avg60=0.00 avg300=0.00 total=" + times + "5000000\n",
		"cpu.stat":        "usage_usec " + times + "9000000\nuser_usec " + times + "00\n",
	})
}

func TestWaitStalled(t *testing.T) {
	h, dir := fakeV2(t, "a")
	g, err := load(h, "a")
	if err != nil {
		t.Fatal(err)
	}
	wait := func(change func()) (bool, time.Duration) {
		var stalled bool
		var took time.Duration
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			time.AfterFunc(stall.Time*5/2, change)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			var err error
			if stalled, err = g.WaitStalled(ctx); err != nil {
				t.Error(err)
			}
			took = time.Since(begin)
		})
		return stalled, took
	}
	used(t, dir, "50331648\n", "1")
	// Only what was used since the last look counts: 10 s of 20 run and 10 s waited.
	if stalled, took := wait(func() { used(t, dir, "50331648\n", "2") }); !stalled || took != 3*stall.Time {
		t.Errorf("stalled %v after %v, want so after %v", stalled, took, 3*stall.Time)
	}
	if stalled, took := wait(func() {}); stalled || took != time.Hour {
		t.Errorf("at rest: stalled %v after %v", stalled, took)
	}
	if stalled, took := wait(func() { used(t, dir, "max\n", "3") }); stalled || took != 3*stall.Time {
		t.Errorf("without a limit: stalled %v after %v", stalled, took)
	}
	used(t, dir, "50331648\n", "1")
	if stalled, took := wait(func() { _ = os.RemoveAll(dir) }); stalled || took != 3*stall.Time {
		t.Errorf("without a group: stalled %v after %v", stalled, took)
	}
	h, dir = fakeV2(t, "b")
	put(t, dir, map[string]string{"memory.max": "much\n"})
	g, err = load(h, "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.WaitStalled(t.Context()); err == nil || !strings.Contains(err.Error(), "memory.max") {
		t.Errorf("a limit that is no number: %v", err)
	}
}
