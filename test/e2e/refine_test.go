package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/node/snapshots"
)

// TestRefine: with vHive's --snapshots --upf on a driver that records working sets and
// saves differences, a snapshot is refined from one restore to the next.
func TestRefine(t *testing.T) {
	t.Parallel()
	s := up(t, "--idle-after", "1s", "--sandbox", "qemu", "--snapshots", "--upf").importProbe()
	name := s.annotatedMode("refine", "qemu", "ballast", map[string]string{
		"skep.dev/snapshot-policy": "after-ready,after-n=2", "skep.dev/snapshot-working-set": "union", retention: "3s",
	})
	first, _ := s.inside(name)
	s.atZero(name)
	restored := func(count int) {
		t.Helper()
		if got, start := s.inside(name); start != "restored" || got.Born != first.Born || got.Count != count {
			t.Errorf("%s as %+v, want a count of %d", start, got, count)
		}
	}
	generation := func(want string, layers int) {
		t.Helper()
		snap := s.stored(name)
		d := decode[admin.SnapshotDetail](t, s.ok("snapshot", "describe", snap.ID, "-o", "json"))
		if got := d.Manifest.Labels[snapshots.LabelGeneration]; got != want {
			t.Errorf("generation %q, want %q", got, want)
		}
		folders, err := os.ReadDir(filepath.Join(s.Dir, "snapshots", "local"))
		if err != nil || len(folders) != layers {
			t.Errorf("%d folders on this machine, want %d (%v)", len(folders), layers, err)
		}
	}
	generation("", 1)
	// The first restored one records; after two responses it is saved again,
	// as a difference.
	restored(1)
	s.wantMetric("skep_snapshot_recordings_total 1")
	restored2, _ := s.inside(name)
	if restored2.Count != 2 {
		t.Errorf("the second request: %+v", restored2)
	}
	s.wantMetric(`skep_snapshot_saves_total{result="ok"} 2`)
	s.wantMetric("skep_snapshot_unstored 0")
	generation("2", 2)
	s.atZero(name)
	// From the difference and its base, and with a working set of their own.
	restored(3)
	s.wantMetric("skep_snapshot_recordings_total 2")
	s.atZero(name)
	// An instance that needs far more than that has it recorded anew.
	if r := s.get(name, "/touch"); r.Header.Get("X-Skep-Start") != "restored" {
		t.Errorf("touched after a start that was %s", r.Header.Get("X-Skep-Start"))
	}
	s.atZero(name)
	s.get(name, "/touch")
	s.wantMetric("skep_snapshot_recordings_total 3")
}
