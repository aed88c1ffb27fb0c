package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
)

// TestPagerFails: what a pager reads from is cut off under an instance that it
// serves. The instance is killed, as it must not go on with other memory than
// its own, and the request that it had is answered by another one.
func TestPagerFails(t *testing.T) {
	t.Parallel()
	s := up(t, "--idle-after", "1s", "--sandbox", "qemu", "--snapshot-restore-mode", "pager", "--snapshot-pool", "0").importProbe()
	name := s.annotatedMode("cutoff", "qemu", "ballast", map[string]string{retention: "20s"})
	s.stored(name)
	s.atZero(name)
	first, start := s.inside(name)
	if start != "restored" {
		t.Fatalf("the first request: %s", start)
	}
	s.wantMetric("skep_snapshot_recordings_total 1") // which reads it, too
	s.wantMetric("skep_snapshot_unstored 0")         // and so does storing that
	images, err := filepath.Glob(filepath.Join(s.Dir, "snapshots", "local", "*", "*", sandbox.FileMemory))
	if err != nil || len(images) != 1 {
		t.Fatalf("memory of snapshots: %v, %v", images, err)
	}
	if err := os.Truncate(images[0], 0); err != nil {
		t.Fatal(err)
	}
	// It touches what nobody has touched since the restore.
	r, err := s.do(http.MethodGet, name, "/touch", nil)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("while the pager fails: %v, %v\n%s", r.Response, err, r.body)
	}
	if start := r.Header.Get("X-Skep-Start"); start == "warm" {
		t.Error("answered by an instance without its memory")
	}
	if !strings.Contains(s.LogTail(), "the machine's memory is not served any more, it was killed") {
		t.Error("no pager has failed")
	}
	if got, _ := s.inside(name); got.Host == first.Host {
		t.Errorf("host %s goes on without its memory", got.Host)
	}
	s.wantEvent(name, "SnapshotDamaged")
	s.wantMetric(`skep_snapshot_restores_total{result="damaged"} 1`)
}
