package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Recorded adds a working set to the snapshot that the instance was restored
// from: write makes the file. From now on instances are restored with it.
func (u *Use) Recorded(ctx context.Context, write func(ctx context.Context, path string) error) error {
	c, l := u.c, u.l
	name := "ws-" + sandbox.NewID()
	path := filepath.Join(c.dir(l), name)
	if err := write(ctx, path); err != nil {
		_ = os.Remove(path) // else it goes with the folder
		c.mu.Lock()
		c.key(u.key).unrecorded++
		c.mu.Unlock()
		return fmt.Errorf("record the working set: %w", err)
	}
	p, bytes, err := printOf(path)
	if err != nil {
		return fmt.Errorf("record the working set: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.dead {
		return errors.New("record the working set: the snapshot is out of use")
	}
	if old := l.rec.WorkingSet; old != "" {
		delete(l.rec.Files, old)
		l.stale = append(l.stale, old)
	}
	l.rec.WorkingSet, l.rec.Files[name] = name, p
	l.outdated, l.drifted = false, 0
	l.rec.Recordings++
	l.rec.Bytes += bytes
	l.rec.Synced, l.rec.Boot = false, c.boot
	l.unstored = true
	layers := l.rec.Manifest.Layers[:0:0]
	for _, ref := range l.rec.Manifest.Layers {
		if ref.Role != roleWorkingSet {
			layers = append(layers, ref)
		}
	}
	l.rec.Manifest.Layers = layers
	c.metrics.recordings.Inc()
	if err := c.record(ctx, l); err != nil {
		return err
	}
	c.poke()
	return nil
}

// Fitted tells whether the working set was what an instance needed. It is
// recorded anew, by one of the next instances, when as many in a row have
// needed too much else as there were recordings: a function that never does the
// same twice is not slowed down for ever. It returns true when that is decided.
func (u *Use) Fitted(well bool) (again bool) {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	l := u.l
	if !u.hasSet() {
		return false
	}
	if well {
		l.drifted = 0
		return false
	}
	l.drifted++
	l.outdated = l.drifted >= max(1, l.rec.Recordings)
	return l.outdated
}

// Spoiled tells that the working set's file is damaged: it is recorded anew by
// the next instance that may. It returns true when that was not decided yet.
func (u *Use) Spoiled() (again bool) {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	if !u.hasSet() {
		return false
	}
	u.l.outdated = true
	return true
}

// hasSet tells whether the working set that the instance began with is the
// snapshot's still, and not known to be outdated. The caller holds mu.
func (u *Use) hasSet() bool {
	l := u.l
	return !l.dead && !l.outdated && l.rec.WorkingSet != "" && l.rec.WorkingSet == filepath.Base(u.Image.WorkingSet)
}
