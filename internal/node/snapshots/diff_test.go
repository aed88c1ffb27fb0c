package snapshots

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapshot"
)

// page of the memory that a test changes, by the depth of the difference.
func page(n int) []byte { return bytes.Repeat([]byte{byte('0' + n)}, 4096) }

// extend restores a key's snapshot and saves a difference on it, or the whole.
func (l *lab) extend(key string, n int, diff bool) (dirs []string) {
	l.t.Helper()
	on := l.Find(l.t.Context(), want(key), false)
	if on == nil {
		l.t.Fatal("there is nothing to extend")
	}
	defer on.Release()
	err := l.Create(l.t.Context(), want(key), CreateOptions{On: on, Diff: diff}, func(_ context.Context, dir string, asked bool) error {
		if asked != diff {
			l.t.Errorf("asked for a difference: %t, want %t", asked, diff)
		}
		f, err := os.Create(filepath.Join(dir, sandbox.FileMemory))
		if err != nil {
			return err
		}
		defer f.Close()
		if !asked {
			if _, err := f.WriteAt(memory(l.t, on.Image.Dirs), 0); err != nil {
				return err
			}
		}
		_, err = f.WriteAt(page(n), int64(n)*4096)
		return errors.Join(err, f.Truncate(1<<20), os.WriteFile(filepath.Join(dir, sandbox.FileState), page(n), 0o600))
	})
	if err != nil {
		l.t.Fatal(err)
	}
	u := l.Find(l.t.Context(), want(key), false)
	defer u.Release()
	return u.Image.Dirs
}

// memory is what folders make up together.
func memory(t *testing.T, dirs []string) []byte {
	t.Helper()
	out := make([]byte, 1<<20)
	for n := len(dirs) - 1; n >= 0; n-- {
		f, err := os.Open(filepath.Join(dirs[n], sandbox.FileMemory))
		if err != nil {
			t.Fatal(err)
		}
		extents, err := snapshot.FileExtents(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range extents {
			if _, err := f.ReadAt(out[x.Offset:x.End()], x.Offset); err != nil {
				t.Fatal(err)
			}
		}
		_ = f.Close()
	}
	return out
}

// has checks that the pages 1 to n of a key's memory are changed, and that
// the rest is the first snapshot's.
func (l *lab) has(key string, n, layers int) {
	l.t.Helper()
	u := l.Find(l.t.Context(), want(key), false)
	if u == nil {
		l.t.Fatal("there is no snapshot")
	}
	defer u.Release()
	if len(u.Image.Dirs) != layers {
		l.t.Errorf("%d layers, want %d", len(u.Image.Dirs), layers)
	}
	m := memory(l.t, u.Image.Dirs)
	for i := 1; i <= n; i++ {
		if !bytes.Equal(m[i*4096:(i+1)*4096], page(i)) {
			l.t.Errorf("page %d is not as it was saved", i)
		}
	}
	if !bytes.HasPrefix(m[512<<10:], []byte("one")) || !bytes.Equal(m[:4096], make([]byte, 4096)) {
		l.t.Error("the base is not what it was")
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	l.save("a", "one")
	base := l.stored("a")
	for n := 1; n <= 2; n++ {
		if dirs := l.extend("a", n, true); len(dirs) != n+1 {
			t.Errorf("after %d differences: %q", n, dirs)
		}
		l.has("a", n, n+1)
		l.stored("a")
	}
	top := l.stored("a")
	if got := l.lineage(top); len(got) != 3 || got[2] != base {
		t.Errorf("its lineage is %v, want it to end with %s", got, base)
	}
	if n := l.folders(); n != 3 {
		t.Errorf("%d folders, want the base and two differences", n)
	}
	if r, err := l.Store().Verify(t.Context(), top); err != nil || !r.OK() {
		t.Errorf("verify: %+v, %v", r, err)
	}
	if _, err := l.Store().GC(t.Context(), snapshot.Policy{}); err != nil {
		t.Error(err)
	}
	// The next process takes all three over.
	l.shut()
	l = open(t, dir)
	l.has("a", 2, 3)
	if l.folders() != 3 || l.events(ReasonDamaged) != 0 {
		t.Errorf("after a start: %d folders, %d damaged", l.folders(), l.events(ReasonDamaged))
	}
	// A whole one ends the chain.
	l.extend("a", 3, false)
	l.has("a", 3, 1)
	eventually(t, "the parents to go", func() bool { return l.folders() == 1 })
	whole := l.stored("a")
	eventually(t, "the manifests below to go", func() bool { return len(objects(t, dir, "manifests")) == 1 })
	if got := l.lineage(whole); len(got) != 1 {
		t.Errorf("the lineage of a whole one is %v", got)
	}
	// What comes from the store is whole, too.
	l.extend("a", 4, true)
	l.stored("a")
	l.shut()
	if err := os.RemoveAll(filepath.Join(dir, "local")); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	l.has("a", 4, 1)
	l.Forget("ns", "s-a")
	eventually(t, "all to go", func() bool { return l.folders() == 0 && len(objects(t, dir, "manifests")) == 0 })
}

// lineage is a snapshot in the store and those that it is a difference from.
func (l *lab) lineage(id snapshot.ID) (all []snapshot.ID) {
	l.t.Helper()
	for !id.IsZero() {
		all = append(all, id)
		m, err := l.Store().Describe(l.t.Context(), id)
		if err != nil {
			l.t.Fatal(err)
		}
		id = m.Parent
	}
	return all
}

// TestCompact: a difference in the store becomes whole, and those below it go.
func TestCompact(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	l.save("a", "one")
	l.stored("a")
	l.extend("a", 1, true)
	l.stored("a")
	l.extend("a", 2, true)
	top := l.stored("a")
	below := l.lineage(top)
	got, err := l.Compact(t.Context(), top)
	if err != nil || got.ID == top || !slices.Equal(got.Removed, below) {
		t.Fatalf("%+v, %v, want %v removed", got, err, below)
	}
	m, err := l.Store().Describe(t.Context(), got.ID)
	if err != nil || !m.Parent.IsZero() {
		t.Fatalf("%+v, %v", m, err)
	}
	ref, _ := m.Layer(sandbox.FileMemory)
	if n, err := l.Store().Depth(t.Context(), ref.Digest); err != nil || n != 1 {
		t.Errorf("depth %d, %v", n, err)
	}
	if again, err := l.Compact(t.Context(), got.ID); err != nil || again.ID != got.ID || len(again.Removed) > 0 {
		t.Errorf("once more: %+v, %v", again, err)
	}
	// The files here are still three layers, and the next difference is on the
	// whole one.
	l.has("a", 2, 3)
	if err := l.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.extend("a", 3, true)
	if all := l.lineage(l.stored("a")); len(all) != 2 || all[1] != got.ID {
		t.Errorf("lineage %v, want one on %s", all, got.ID)
	}
	if stats, err := l.Collect(t.Context()); err != nil || stats.Freed == 0 {
		t.Errorf("collect: %+v, %v", stats, err)
	}
	l.shut()
	if err := os.RemoveAll(filepath.Join(dir, "local")); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	l.has("a", 3, 1)
	// One that others are on stays.
	got, err = l.Compact(t.Context(), l.lineage(l.stored("a"))[1])
	if err != nil || len(got.Removed) > 0 {
		t.Errorf("what another is on: %+v, %v", got, err)
	}
}

// TestDiffOnNothing: the store has lost the snapshot that a difference is on,
// before that comes there.
func TestDiffOnNothing(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	l.save("a", "one")
	if err := l.Store().Delete(t.Context(), l.stored("a")); err != nil {
		t.Fatal(err)
	}
	l.extend("a", 1, true)
	top := l.stored("a")
	if all := l.lineage(top); len(all) != 1 {
		t.Errorf("lineage %v", all)
	}
	if r, err := l.Store().Verify(t.Context(), top); err != nil || !r.OK() || r.Layers != 2 { // memory and state, each alone
		t.Errorf("verify: %+v, %v", r, err)
	}
}

// TestDiffUnstored: the store never had what a difference is on.
func TestDiffUnstored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	l.save("a", "one")
	l.stored("a")
	l.locked(func() { // as if it had been superseded before it was stored
		for _, c := range l.copies {
			c.rec.Manifest.Layers = nil
		}
	})
	l.extend("a", 1, true)
	id := l.stored("a")
	m, err := l.Store().Describe(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	ref, _ := m.Layer(sandbox.FileMemory)
	layer, err := l.Store().OpenLayer(t.Context(), ref.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer layer.Close()
	if layer.Depth() != 1 {
		t.Errorf("a layer of depth %d, want it to stand alone", layer.Depth())
	}
	l.shut()
	if err := os.RemoveAll(filepath.Join(dir, "local")); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	l.has("a", 1, 1)
}

// TestDiffOfGone: without the files of its parent a difference is nothing.
func TestDiffOfGone(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		dir := t.TempDir()
		l := open(t, dir)
		l.save("a", "one")
		l.stored("a")
		dirs := l.extend("a", 1, true)
		l.stored("a")
		if restart {
			l.shut()
		}
		if err := os.WriteFile(filepath.Join(dirs[1], sandbox.FileMemory), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		if restart {
			l = open(t, dir)
		}
		l.has("a", 1, 1) // from the store
		if l.events(ReasonDamaged) == 0 {
			t.Error("nobody was told")
		}
		eventually(t, "the damaged ones to go", func() bool { return l.folders() == 1 })
	}
}

// TestDiffInUse: what a sandbox was restored from stays until that has ended.
func TestDiffInUse(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	l.save("a", "one")
	base := l.find("a", "one")
	l.extend("a", 1, true)
	child := l.Find(t.Context(), want("a"), false)
	l.extend("a", 2, false)
	if l.folders() != 3 {
		t.Errorf("%d folders", l.folders())
	}
	base.Release() // the child needs it
	if memory(t, child.Image.Dirs)[512<<10] != 'o' {
		t.Error("the base has gone while its child is used")
	}
	child.Release()
	eventually(t, "both to go", func() bool { return l.folders() == 1 })
	l.has("a", 2, 1)
	// A use that is out of date is no base.
	old := l.Find(t.Context(), want("a"), false)
	l.extend("a", 3, false)
	err := l.Create(t.Context(), want("a"), CreateOptions{On: old, Diff: true}, content("x"))
	if !errors.Is(err, ErrHave) {
		t.Errorf("on a superseded one: %v", err)
	}
	old.Release()
}
