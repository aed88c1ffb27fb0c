package snapshots

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapshot"
)

// kindCopy is the kind of the copies' records in the journal.
const kindCopy = "snapshot"

const imageDir = "image" // within a copy's folder: what the driver wrote

// record is what the journal has of a copy, from before its folder is made.
type record struct {
	Whole bool `json:"whole"` // it was made to the end
	// Synced: it is on the disk. Before, it counts only for the Boot of the
	// machine that it was made in: a power failure could have taken some.
	Synced bool   `json:"synced"`
	Boot   string `json:"boot"`

	Snapshot snapshot.ID       `json:"snapshot"` // in the store; zero: not yet
	Manifest snapshot.Manifest `json:"manifest"` // its layers are those stored already
	// Files are those of the image and, if there is one, the WorkingSet, by
	// their paths within the folder.
	Files      map[string]print `json:"files"`
	WorkingSet string           `json:"workingSet,omitempty"`
	Recordings int              `json:"recordings,omitempty"` // of working sets so far
	Bytes      int64            `json:"bytes"`                // on the disk
	At         time.Time        `json:"at"`                   // last used, at least to the minute
	// Parents are the copies, by name and the nearest first, which its memory is
	// a difference from. Superseded: it is there for its children alone.
	Parents    []string `json:"parents,omitempty"`
	Superseded bool     `json:"superseded,omitempty"`
}

// local is a snapshot on this machine as files. Its fields are guarded by the
// catalog's mu, and so is what is in its folder once it is whole.
type local struct {
	name string
	rec  record

	users int // sandboxes that have it, and goroutines that read it
	// children are the copies that are differences from it.
	children int
	dead     bool // goes with its last user and child
	forget   bool // and is not to be stored
	// unstored: something in it is not in the store; busy: it is being brought.
	unstored, busy bool
	recording      bool // a sandbox records its working set
	outdated       bool // which is to be recorded anew
	drifted        int  // instances in a row that it did not fit
	stale          []string
	store          backoff
	storedAt       time.Time
}

func (l *local) dirty() bool { return l.unstored || l.busy }

func (c *Catalog) dir(l *local) string { return filepath.Join(c.cfg.Dir, l.name) }

// image is the copy as drivers take it. The caller holds mu.
func (c *Catalog) image(l *local) sandbox.Image {
	img := sandbox.Image{Dirs: []string{filepath.Join(c.dir(l), imageDir)}}
	for _, p := range c.parents(l) {
		img.Dirs = append(img.Dirs, filepath.Join(c.dir(p), imageDir))
	}
	if l.rec.WorkingSet != "" {
		img.WorkingSet = filepath.Join(c.dir(l), l.rec.WorkingSet)
	}
	return img
}

// newCopy records a copy and makes its folder; the result is not yet known to
// the catalog.
func (c *Catalog) newCopy(ctx context.Context, m snapshot.Manifest) (*local, error) {
	l := &local{name: sandbox.NewID(), rec: record{Boot: c.boot, Manifest: m, At: c.cfg.Now(), Files: map[string]print{}}}
	if err := c.record(ctx, l); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(c.dir(l), imageDir), 0o700); err != nil {
		c.remove(l)
		return nil, fmt.Errorf("snapshot folder: %w", err)
	}
	return l, nil
}

func (c *Catalog) record(ctx context.Context, l *local) error {
	return c.cfg.Journal.Put(context.WithoutCancel(ctx), kindCopy, l.name, l.rec)
}

const removeTimeout = 10 * time.Second

// remove removes a copy that nobody knows of any more.
func (c *Catalog) remove(l *local) {
	if err := os.RemoveAll(c.dir(l)); err != nil {
		c.cfg.Log.Warn("remove a snapshot's files, stays recorded", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), removeTimeout)
	defer cancel()
	if err := c.cfg.Journal.Delete(ctx, kindCopy, l.name); err != nil {
		c.cfg.Log.Warn("forget a snapshot's files", "error", err)
	}
}

// drop takes a copy out of use; it is removed with its last user and child. The caller
// holds mu.
func (c *Catalog) drop(l *local) {
	if l.dead {
		return
	}
	l.dead = true
	for _, e := range c.keys {
		if e.copy == l {
			e.copy = nil
		}
	}
	if l.users == 0 && l.children == 0 {
		c.bury(l)
		return
	}
	// Also for the next start, should this process be killed.
	l.rec.Superseded, l.rec.Whole = true, l.children > 0
	if err := c.record(c.ctx, l); err != nil {
		c.cfg.Log.Warn("take a snapshot's files out of use", "error", err)
	}
}

// bury removes a copy that is dead, and without users and children. The caller
// holds mu.
func (c *Catalog) bury(l *local) {
	if c.copies[l.name] == l {
		delete(c.copies, l.name)
		c.orphan(l)
	}
	if c.closed {
		c.remove(l)
		return
	}
	c.work.Go(func() { c.remove(l) })
}

// leave ends a use. The caller holds mu.
func (c *Catalog) leave(l *local) {
	l.users--
	if l.users > 0 {
		return
	}
	if l.dead {
		if l.children == 0 {
			c.bury(l)
		}
		return
	}
	for _, name := range l.stale {
		_ = os.Remove(filepath.Join(c.dir(l), name)) // else with the folder
	}
	l.stale = nil
	c.shrink()
}

// shrink removes the least recently used copies above the limit that the
// store has, too. The caller holds mu.
func (c *Catalog) shrink() {
	if c.cfg.MaxCopies <= 0 {
		return
	}
	for {
		var sum int64
		var oldest *local
		for _, l := range c.copies {
			if l.dead && l.children == 0 {
				continue
			}
			sum += l.rec.Bytes
			if l.users == 0 && !l.dead && !l.dirty() && (oldest == nil || l.rec.At.Before(oldest.rec.At)) {
				oldest = l
			}
		}
		if sum <= c.cfg.MaxCopies || oldest == nil {
			return
		}
		c.cfg.Log.Debug("removing a snapshot's files for others", "snapshot", oldest.rec.Snapshot, "bytes", oldest.rec.Bytes)
		c.drop(oldest)
	}
}
