package snapshots

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/snapshot"
)

// CreateOptions say how Create makes a snapshot. The zero value is the first
// one of an instance that was booted.
type CreateOptions struct {
	// Force makes one even if there is one already.
	Force bool
	// On is what the instance was restored from. The new one takes its place.
	On *Use
	// Diff asks for what changed since On alone. Save is told whether that is
	// what it shall write.
	Diff bool
}

// Create makes a snapshot: save writes it into an empty folder. It can be
// restored from as soon as Create returns; it comes into the store in the
// background. Without Force, nothing is done if there is one, other than On
// (ErrHave), one is being made, or the last ones failed (ErrNotNow).
func (c *Catalog) Create(ctx context.Context, w Want, o CreateOptions, save func(ctx context.Context, dir string, diff bool) error) error {
	if err := c.begin(w, o); err != nil {
		return err
	}
	l, err := c.create(ctx, w, o, save)
	c.mu.Lock()
	e := c.key(w.Key)
	e.saving = false
	if err != nil {
		e.tries(o).failed(c.cfg.Now())
		c.mu.Unlock()
		c.metrics.saves.WithLabelValues("failed").Inc()
		c.tell(w.manifest().Labels, ReasonFailed, fmt.Errorf("save: %w", err))
		return err
	}
	c.metrics.saves.WithLabelValues("ok").Inc()
	e.refines.worked()
	e.restores.worked() // it is another one than that which failed
	c.put(e, l)
	c.mu.Unlock()
	c.poke()
	return nil
}

// SaveAfter is until when no snapshot is made of a key after failures, unless
// it is forced; the zero time if there were none.
func (c *Catalog) SaveAfter(key string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.keys[key]; e != nil {
		if e.refines.until.After(e.saves.until) {
			return e.refines.until
		}
		return e.saves.until
	}
	return time.Time{}
}

// tries is the back-off for a snapshot that is made in this way.
func (e *entry) tries(o CreateOptions) *backoff {
	if o.On != nil {
		return &e.refines
	}
	return &e.saves
}

// put makes a copy that of its key. The caller holds mu.
func (c *Catalog) put(e *entry, l *local) {
	c.copies[l.name] = l
	c.adoptParents(l)
	old := e.copy
	e.copy = l
	if old != nil {
		c.drop(old)
	}
	c.shrink()
}

func (c *Catalog) begin(w Want, o CreateOptions) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.key(w.Key)
	refines := o.On != nil && e.copy == o.On.l
	switch {
	case c.closed:
		return fmt.Errorf("%w: the node is closed", ErrNotNow)
	case e.saving:
		return fmt.Errorf("%w: one is being made", ErrNotNow)
	case !o.Force && !refines && (e.copy != nil || c.match(e, w) != nil):
		return ErrHave
	}
	if b := e.tries(o); !o.Force && b.blocked(c.cfg.Now()) {
		return fmt.Errorf("%w: the last %d failed; not before %s", ErrNotNow, b.failures, b.until.Format("15:04:05"))
	}
	e.saving = true
	return nil
}

func (c *Catalog) create(ctx context.Context, w Want, o CreateOptions, save func(ctx context.Context, dir string, diff bool) error) (*local, error) {
	m := w.manifest()
	m.Version, m.Created = snapshot.ManifestVersion, c.cfg.Now().UTC().Round(0)
	l, err := c.newCopy(ctx, m)
	if err != nil {
		return nil, err
	}
	// The use keeps the parents' files while this goes on.
	diff := o.Diff && c.base(l, o.On)
	err = save(ctx, filepath.Join(c.dir(l), imageDir), diff)
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
		if _, ok := e.alien[s.id]; ok {
			continue
		}
		err := s.m.Match(snapshot.Environment{Requirements: w.Requirements})
		if err == nil {
			return s
		}
		c.refuse(e, s.id, s.m.Labels, err)
	}
	for id, a := range e.alien {
		c.refuse(e, id, a.labels, a.err)
	}
	return nil
}
