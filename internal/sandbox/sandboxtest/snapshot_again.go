package sandboxtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/saved"
)

// testAgain makes a snapshot of a restored sandbox, and one of that.
func (sn *snapshots) testAgain(t *testing.T) {
	layered := sn.driver.Capabilities().LayeredSnapshot
	image, state := sn.image, sn.state
	for generation := range 2 {
		b := sn.clone(t, sandbox.Restore{Image: image}, fmt.Sprint("generation-", generation))
		b.create(t)
		b.start(t)
		b.check(t, &state)
		state.own = "written by " + b.spec.Hostname
		b.get(t, "/write", nil, "path", "/srv/own", "data", state.own)
		next := sandbox.Image{Dirs: []string{sn.save(t, b, layered)}}
		if layered {
			next.Dirs = append(next.Dirs, image.Dirs...)
			sn.checkSmaller(t, next)
			if generation == 0 { // one that stands alone is possible, too
				whole := sandbox.Image{Dirs: []string{sn.save(t, b, false)}}
				alone := sn.clone(t, sandbox.Restore{Image: whole}, "alone")
				alone.create(t)
				alone.start(t)
				st := state
				alone.check(t, &st)
			}
		}
		goesOn := state
		b.check(t, &goesOn)
		b.destroy(t)
		image = next
	}
	if layered {
		flat := sn.clone(t, sandbox.Restore{Image: sn.flatten(t, image)}, "flat")
		flat.create(t)
		flat.start(t)
		st := state
		flat.check(t, &st)
	}
	for _, mode := range sn.driver.Capabilities().RestoreModes {
		t.Run(string(mode), func(t *testing.T) {
			b := sn.clone(t, sandbox.Restore{Image: image, Mode: mode}, "again-"+strings.ReplaceAll(string(mode), "+", "-"))
			b.create(t)
			b.start(t)
			sn.checkIdentity(t, b, t.Name())
			st := state
			b.check(t, &st)
		})
	}
}

// checkSmaller checks that a difference takes less room than the whole.
func (sn *snapshots) checkSmaller(t *testing.T, image sandbox.Image) {
	t.Helper()
	size := func(dir string) int64 {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, sandbox.FileMemory), &st); err != nil {
			t.Fatal(&os.PathError{Op: "stat", Path: dir, Err: err})
		}
		return st.Blocks * 512
	}
	diff, whole := size(image.Dirs[0]), size(image.Dirs[len(image.Dirs)-1])
	t.Logf("the difference takes %d bytes, the first snapshot %d", diff, whole)
	if diff >= whole {
		t.Errorf("the difference takes %d bytes, the first snapshot %d", diff, whole)
	}
}

// flatten makes one folder of an image, as a store does that knows nothing of
// drivers.
func (sn *snapshots) flatten(t *testing.T, image sandbox.Image) sandbox.Image {
	t.Helper()
	dir := sn.folder(t)
	files, err := os.ReadDir(image.Dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != sandbox.FileMemory {
			if err := os.Link(image.File(f.Name()), filepath.Join(dir, f.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	memory, err := saved.OpenMemory(image.Dirs)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	whole, err := memory.Whole()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, sandbox.FileMemory))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := out.Truncate(memory.Sizes[0]); err != nil {
		t.Fatal(err)
	}
	page := make([]byte, 4096)
	for off := int64(0); off < memory.Sizes[0]; off += int64(len(page)) {
		if whole.Zero(off, int64(len(page))) {
			continue
		}
		if _, err := whole.ReadAt(page, off); err != nil {
			t.Fatal(err)
		}
		if _, err := out.WriteAt(page, off); err != nil {
			t.Fatal(err)
		}
	}
	return sandbox.Image{Dirs: []string{dir}}
}
