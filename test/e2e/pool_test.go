package e2e

import (
	"strings"
	"testing"
)

// wantMetric waits until a line is among the metrics.
func (s *skep) wantMetric(line string) {
	s.t.Helper()
	eventually(s.t, line, func() string {
		for l := range strings.Lines(s.metrics()) {
			name, _, _ := strings.Cut(line, " ")
			switch {
			case l == line+"\n":
				return ""
			case strings.HasPrefix(l, name+" "):
				return l
			}
		}
		return "it is not there"
	})
}

// TestPool: a start from zero takes a sandbox that was prepared, another one is
// prepared in its place, and neither kill -9 nor the end of the service leaves any.
func TestPool(t *testing.T) {
	t.Parallel()
	s := up(t, "--idle-after", "1s", "--sandbox", "gvisor").importProbe()
	name := s.annotated("pool", "gvisor", map[string]string{"skep.dev/snapshot-pool": "1"})
	take := func() {
		t.Helper()
		s.atZero(name)
		s.wantMetric("skep_prepared_sandboxes 1")
		if strings.Contains(s.metrics(), "\nskep_prepared_bytes 0\n") {
			t.Error("a prepared sandbox takes no memory")
		}
		r := s.get(name, "/state")
		timing := r.Header.Get("Server-Timing")
		if r.Header.Get("X-Skep-Start") != "restored" || !strings.Contains(timing, "start-pool") {
			t.Errorf("not from the pool: %v", r.Header)
		}
		t.Logf("from the pool: %s", timing)
		// The memory was there already: the driver's mode for pools.
		for _, phase := range []string{"start-network", "start-prepare", "start-boot"} {
			if strings.Contains(timing, phase) {
				t.Errorf("%s of a prepared sandbox is part of the start: %s", phase, timing)
			}
		}
	}
	take()
	s.wantMetric(`skep_pool_starts_total{result="taken"} 1`)
	take()
	s.wantMetric("skep_prepared_sandboxes 1")
	if err := s.Kill(); err != nil { // with one prepared
		t.Fatal(err)
	}
	s.up()
	take()
	s.ok("snapshot", "create", name) // takes the place of that which the prepared one is of
	take()
	s.ok("delete", name)
	s.wantMetric("skep_prepared_sandboxes 0")
	s.wantMetric("skep_prepared_bytes 0")
}

// TestBootWhereFaster: of a function that takes long after a restore and little
// to boot, Skep learns to boot it.
func TestBootWhereFaster(t *testing.T) {
	t.Parallel()
	s := up(t, "--idle-after", "1s", "--sandbox", "gvisor").importProbe()
	name := s.annotated("faster", "gvisor", map[string]string{"skep.dev/snapshot-after-path": "/hook/slow"})
	first, _ := s.inside(name)
	for n := range 4 {
		s.atZero(name)
		got, start := s.inside(name)
		if restored := n < 3; restored != (start == "restored") || restored != (got.Born == first.Born) {
			t.Errorf("start %d: %s, %+v", n, start, got)
		}
	}
	s.ok("snapshot", "list") // it is there all the same
	if len(s.snapshots(name)) != 1 {
		t.Errorf("snapshots: %+v", s.snapshots(name))
	}
}
