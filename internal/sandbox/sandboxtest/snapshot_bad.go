package sandboxtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// refused checks that a sandbox cannot be restored like this, and that the
// attempt leaves nothing behind.
func (sn *snapshots) refused(t *testing.T, r sandbox.Restore) error {
	t.Helper()
	b := sn.clone(t, r, "refused")
	sb, err := b.make(sn.ctx(t))
	if err != nil {
		b.checkGone(t)
		return err
	}
	b.sb = sb
	if err = sb.Start(sn.ctx(t)); err == nil {
		t.Error("Prepare and Start succeeded")
	}
	return err
}

// testRefused asks for what there is not.
func (sn *snapshots) testRefused(t *testing.T) {
	caps := sn.driver.Capabilities()
	modes := []sandbox.RestoreMode{"no-such-mode"}
	for _, m := range []sandbox.RestoreMode{sandbox.RestoreMap, sandbox.RestoreHint, sandbox.RestoreEager, sandbox.RestorePager, sandbox.RestoreBackground} {
		if !slices.Contains(caps.RestoreModes, m) {
			modes = append(modes, m)
		}
	}
	for _, m := range modes {
		if err := sn.refused(t, sandbox.Restore{Image: sn.image, Mode: m}); err != nil && !strings.Contains(err.Error(), string(m)) {
			t.Errorf("error %q does not name the mode %q", err, m)
		}
	}
	missing := filepath.Join(sn.dir, "no-such-snapshot")
	if err := sn.refused(t, sandbox.Restore{Image: sandbox.Image{Dirs: []string{missing}}}); err != nil && !strings.Contains(err.Error(), missing) {
		t.Errorf("error %q does not name the folder %s", err, missing)
	}
	_ = sn.refused(t, sandbox.Restore{})
	if !caps.LayeredSnapshot {
		_ = sn.refused(t, sandbox.Restore{Image: sandbox.Image{Dirs: []string{sn.image.Dirs[0], sn.image.Dirs[0]}}})
	}
	b := sn.clone(t, sandbox.Restore{Image: sn.image}, "refused")
	good := b.spec.ID
	b.spec.ID = "../etc"
	sb, err := b.make(sn.ctx(t))
	b.spec.ID = good
	if err == nil {
		b.sb = sb
		t.Error("Prepare with a bad ID succeeded")
	}
}

// testDamaged damages each file of a snapshot in several ways. What is wrong
// within a file of the right length only its owner can tell, by a checksum.
func (sn *snapshots) testDamaged(t *testing.T) {
	files, err := os.ReadDir(sn.image.Dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		damages := []string{"missing", "empty", "half"}
		if f.Name() == sandbox.FileState {
			damages = append(damages, "garbage")
		}
		for _, damage := range damages {
			t.Run(f.Name()+"-"+damage, func(t *testing.T) {
				dir := sn.folder(t)
				for _, other := range files {
					if other.Name() == f.Name() {
						continue
					}
					if err := os.Link(filepath.Join(sn.image.Dirs[0], other.Name()), filepath.Join(dir, other.Name())); err != nil {
						t.Fatal(err)
					}
				}
				if damage != "missing" {
					damaged(t, filepath.Join(sn.image.Dirs[0], f.Name()), filepath.Join(dir, f.Name()), info.Size(), damage)
				}
				t.Logf("refused: %v", sn.refused(t, sandbox.Restore{Image: sandbox.Image{Dirs: []string{dir}}}))
			})
		}
	}
}

// damaged makes a damaged copy of a file. Half of a big one is of zeros: it
// has to be refused for its length.
func damaged(t *testing.T, from, to string, size int64, how string) {
	t.Helper()
	var content []byte
	var err error
	switch {
	case how == "empty":
		size = 0
	case how == "garbage":
		content = make([]byte, size)
		_, _ = rand.Read(content)
	case size < 16<<20:
		size /= 2
		if content, err = os.ReadFile(from); err != nil {
			t.Fatal(err)
		}
		content = content[:size]
	default:
		size /= 2
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(to, size); err != nil {
		t.Fatal(err)
	}
}

// testCancelled cancels a restore, whatever the moment: either there is a
// sandbox, or there is nothing.
func (sn *snapshots) testCancelled(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			b := sn.clone(t, sandbox.Restore{Image: sn.image}, "cancelled")
			ctx, cancel := context.WithTimeout(sn.ctx(t), after)
			defer cancel()
			sb, err := b.make(ctx)
			if err != nil {
				b.checkGone(t)
				return
			}
			b.sb = sb
			if after == 0 {
				t.Error("Prepare with a context that has ended succeeded")
			}
			if err := sb.Start(ctx); err != nil {
				t.Logf("Start: %v", err)
				return
			}
			cancel() // the context was for starting only
			state := sn.state
			b.check(t, &state)
		})
	}
}

// testReap kills the owner of a sandbox that is being restored, or saved.
func (sn *snapshots) testReap(t *testing.T) {
	for _, stage := range []string{"creating", "created", "starting", "started", "saving"} {
		t.Run(stage, func(t *testing.T) {
			b := sn.clone(t, sandbox.Restore{Image: sn.image}, "reaped")
			b.killOwner(t, stage, sn.folder(t))
		})
	}
}
