package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

func TestMergeSets(t *testing.T) {
	t.Parallel()
	const size, unit = 64 << 10, 4096
	// A base, and a difference that changes page 3.
	dirs := []string{t.TempDir(), t.TempDir()}
	for n, dir := range dirs {
		f, err := os.Create(filepath.Join(dir, sandbox.FileMemory))
		if err != nil {
			t.Fatal(err)
		}
		data, off := make([]byte, size), int64(0)
		if n == 0 {
			data, off = make([]byte, unit), 3*unit
		}
		for i := range data {
			data[i] = byte(n + 1)
		}
		if _, err := f.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(filepath.Join(dirs[1], sandbox.FileMemory))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	base, err := pager.NewSparseFile(f)
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string, pages ...uint64) {
		if err := pager.WriteWorkingSet(t.Context(), path, pager.Recording{PageSize: unit, Pages: pages}, base); err != nil {
			t.Fatal(err)
		}
	}
	for policy, want := range map[snapshots.WorkingSets][]uint64{
		"": {3, 9}, snapshots.LastSet: {3, 9}, snapshots.UniteSets: {7, 3, 9}, snapshots.IntersectSets: {3},
	} {
		dir := t.TempDir()
		image := sandbox.Image{Dirs: dirs, WorkingSet: filepath.Join(dir, "old")}
		path := filepath.Join(dir, "new")
		write(image.WorkingSet, 7, 3)
		write(path, 3, 9)
		if err := mergeSets(t.Context(), policy, image, path); err != nil {
			t.Fatalf("%s: %v", policy, err)
		}
		got, err := readSet(path)
		if err != nil || !slices.Equal(got.Pages, want) {
			t.Errorf("%s: pages %v, %v; want %v", policy, got.Pages, err, want)
		}
		// Nothing in common: the latest.
		write(path, 1, 2)
		if err := mergeSets(t.Context(), snapshots.IntersectSets, image, path); err != nil {
			t.Fatal(err)
		}
		if got, err := readSet(path); err != nil || !slices.Equal(got.Pages, []uint64{1, 2}) {
			t.Errorf("nothing in common: %v, %v", got.Pages, err)
		}
		image.WorkingSet = filepath.Join(dir, "none")
		if err := mergeSets(t.Context(), snapshots.UniteSets, image, path); err == nil {
			t.Error("an old set that is not there: no error")
		}
	}
}
