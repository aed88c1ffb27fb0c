package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDifference: a restored instance is saved again as a difference, which is
// restored with what lies below it, and from the store, that has made one of
// both. TestRefine does the first with working sets, on another driver.
func TestDifference(t *testing.T) {
	t.Parallel()
	s := up(t, "--idle-after", "1s", "--sandbox", "gvisor", "--snapshot-pool", "0", "--snapshot-restore-mode", "always").importProbe()
	name := s.annotated("difference", "gvisor", map[string]string{"skep.dev/snapshot-policy": "after-ready,after-n=2", retention: "3s"})
	first, _ := s.inside(name)
	restored := func(count int) {
		t.Helper()
		if got, start := s.inside(name); start != "restored" || got.Born != first.Born || got.Count != count {
			t.Errorf("%s as %+v, want a count of %d", start, got, count)
		}
	}
	local := filepath.Join(s.Dir, "snapshots", "local")
	folders := func(want int) {
		t.Helper()
		eventually(t, "folders of snapshots", func() string {
			if all, err := os.ReadDir(local); err != nil || len(all) != want {
				return fmt.Sprintf("%d folders, want %d (%v)", len(all), want, err)
			}
			return ""
		})
	}
	s.stored(name)
	s.atZero(name)
	folders(1)
	restored(1)
	s.inside(name) // the second response: it is saved again
	s.wantMetric(`skep_snapshot_saves_total{result="ok"} 2`)
	s.wantMetric("skep_snapshot_unstored 0")
	folders(2)
	s.atZero(name)
	restored(3)
	// In the store it names what it is a difference from, until it is compacted.
	top := s.stored(name)
	if all := s.snapshots(name); len(all) != 2 || top.Parent == "" || top.Depth != 2 {
		t.Errorf("snapshots: %+v", all)
	}
	if text := s.ok("snapshot", "describe", top.ID); !strings.Contains(text, top.Parent) || !strings.Contains(text, "a difference: 2 layers") {
		t.Errorf("describe:\n%s", text)
	}
	if text := s.ok("snapshot", "compact", top.ID); !strings.Contains(text, "2 to 1") {
		t.Errorf("compact:\n%s", text)
	}
	if all := s.snapshots(name); len(all) != 1 || all[0].Parent != "" || all[0].Depth != 1 || all[0].ID == top.ID {
		t.Errorf("compacted: %+v", all)
	}
	s.atZero(name)
	damage(t, local)
	restored(3)
	s.wantEvent(name, "SnapshotDamaged")
	folders(1)
}
