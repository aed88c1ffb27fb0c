package snapshots

import (
	"context"
	"os"
	"testing"
)

// A working set that drifts is recorded again ever more seldom, a damaged one
// at once.
func TestSpoiled(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	l.save("a", "one")
	recorded := func() {
		t.Helper()
		u := l.Find(t.Context(), want("a"), true)
		defer u.Release()
		if !u.Record {
			t.Fatal("nobody is asked to record")
		}
		if err := u.Recorded(t.Context(), func(_ context.Context, path string) error { return os.WriteFile(path, []byte("set"), 0o600) }); err != nil {
			t.Fatal(err)
		}
	}
	recorded()
	old := l.Find(t.Context(), want("a"), true)
	defer old.Release()
	if !old.Fitted(false) {
		t.Error("the first drift does not count")
	}
	recorded()
	u := l.Find(t.Context(), want("a"), true)
	defer u.Release()
	if u.Fitted(false) {
		t.Error("after two recordings one drift is enough")
	}
	if old.Spoiled() {
		t.Error("the older set's damage counts against the newer")
	}
	if !u.Spoiled() || u.Spoiled() {
		t.Error("damage does not count, or counts twice")
	}
	recorded()
}
