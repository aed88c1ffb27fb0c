package sandboxtest

import (
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// recordAgain records a working set of an image that has one: the new one is
// as whole as if there were none.
func (sn *snapshots) recordAgain(t *testing.T, first *pager.WorkingSet) {
	t.Helper()
	b := sn.clone(t, sandbox.Restore{Image: sn.image, Record: true}, "recorded-again")
	b.create(t)
	b.start(t)
	b.get(t, "/count", nil)
	path := filepath.Join(sn.dir, "workingset-again")
	if err := b.sb.(sandbox.Recorder).Recorded(sn.ctx(t), path); err != nil {
		t.Fatalf("Recorded: %v", err)
	}
	ws, err := pager.OpenWorkingSet(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close() //nolint:errcheck // read only
	was, _ := first.Pages()
	now, zero := ws.Pages()
	t.Logf("recorded again, it touches %d pages, %d of zeros", now, zero)
	if now < was/2 {
		t.Errorf("recorded again, the working set has %d pages, it had %d", now, was)
	}
}

// checkDrift checks what a sandbox that has answered its first request says of
// its working set.
func (b *box) checkDrift(t *testing.T) {
	t.Helper()
	d, is := b.sb.(sandbox.Drifter)
	set := b.restore.Image.WorkingSet
	if b.restore.Mode != sandbox.RestorePager || set == "" {
		if !is {
			return
		}
		if drift, ok := d.Drift(); ok {
			t.Errorf("sandbox %s, restored by %q with the working set %q, sees drift: %+v", b.spec.Hostname, b.restore.Mode, set, drift)
		}
		return
	}
	if !is {
		t.Errorf("sandbox %s was restored by %s, but is no Drifter", b.spec.Hostname, b.restore.Mode)
		return
	}
	ws, err := pager.OpenWorkingSet(set, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close() //nolint:errcheck // read only
	drift, ok := d.Drift()
	t.Logf("sandbox %s: drift %+v, %v", b.spec.Hostname, drift, ok)
	if want, _ := ws.Pages(); !ok || drift.Size != want || drift.Missing < 0 || drift.Missing >= want {
		t.Errorf("sandbox %s: drift %+v, %v; want true, size %d, and fewer missing", b.spec.Hostname, drift, ok, want)
	}
}
