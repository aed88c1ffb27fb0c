package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapshot"
)

// Create makes a snapshot: save writes it into an empty folder. It can be
// restored from as soon as Create returns; it comes into the store in the
// background. Without force, nothing is done if there is one (ErrHave), one
// is being made, or the last ones failed (ErrNotNow).
func (c *Catalog) Create(ctx context.Context, w Want, force bool, save func(ctx context.Context, dir string) error) error {
	if err := c.begin(w, force); err != nil {
		return err
	}
	l, err := c.create(ctx, w, save)
	c.mu.Lock()
	e := c.key(w.Key)
	e.saving = false
	if err != nil {
		e.saves.failed(c.cfg.Now())
		c.mu.Unlock()
		c.metrics.saves.WithLabelValues("failed").Inc()
		c.tell(w.manifest().Labels, ReasonFailed, fmt.Errorf("save: %w", err))
		return err
	}
	c.metrics.saves.WithLabelValues("ok").Inc()
	e.restores.worked() // it is another one than that which failed
	c.put(e, l)
	c.mu.Unlock()
	c.poke()
	return nil
}

// put makes a copy that of its key. The caller holds mu.
func (c *Catalog) put(e *entry, l *local) {
	c.copies[l.name] = l
	old := e.copy
	e.copy = l
	if old != nil {
		c.drop(old)
	}
	c.shrink()
}

func (c *Catalog) begin(w Want, force bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.key(w.Key)
	switch {
	case c.closed:
		return fmt.Errorf("%w: the node is closed", ErrNotNow)
	case e.saving:
		return fmt.Errorf("%w: one is being made", ErrNotNow)
	case force:
	case e.copy != nil || c.match(e, w) != nil:
		return ErrHave
	case e.saves.blocked(c.cfg.Now()):
		return fmt.Errorf("%w: the last %d failed; not before %s", ErrNotNow, e.saves.failures, e.saves.until.Format("15:04:05"))
	}
	e.saving = true
	return nil
}

func (c *Catalog) create(ctx context.Context, w Want, save func(ctx context.Context, dir string) error) (*local, error) {
	m := w.manifest()
	m.Version, m.Created = snapshot.ManifestVersion, c.cfg.Now().UTC().Round(0)
	l, err := c.newCopy(ctx, m)
	if err != nil {
		return nil, err
	}
	err = save(ctx, filepath.Join(c.dir(l), imageDir))
	if err == nil {
		err = c.examine(l)
	}
	if err == nil {
		l.rec.Whole, l.unstored = true, true
		err = c.record(ctx, l)
	}
	if err != nil {
		c.remove(l)
		return nil, err
	}
	return l, nil
}

// match finds the newest snapshot in the store that can be restored here. The
// caller holds mu.
func (c *Catalog) match(e *entry, w Want) *stored {
	for n := range e.stored {
		s := &e.stored[n]
		err := s.m.Match(snapshot.Environment{Requirements: w.Requirements})
		if err == nil {
			return s
		}
		c.refuse(e, s.id, s.m.Labels, err)
	}
	return nil
}

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

// Outdated has the working set recorded anew by the next instance: this one
// needed too much else.
func (u *Use) Outdated() {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	l := u.l
	if l.dead || l.rec.WorkingSet == "" || l.rec.WorkingSet != filepath.Base(u.Image.WorkingSet) {
		return
	}
	delete(l.rec.Files, l.rec.WorkingSet)
	l.stale = append(l.stale, l.rec.WorkingSet)
	l.rec.WorkingSet = ""
	if err := u.c.record(u.c.ctx, l); err != nil {
		u.c.cfg.Log.Warn("drop an outdated working set", "error", err)
	}
}
