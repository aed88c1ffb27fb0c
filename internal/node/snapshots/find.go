package snapshots

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapshot"
)

// Use is a snapshot that an instance is started from. It stays until Release.
type Use struct {
	c    *Catalog
	l    *local
	key  string
	once sync.Once

	// Image is for sandbox.Restore.
	Image sandbox.Image
	// Boot is how long the instance took to boot that the snapshot is of; 0 if
	// that is not known.
	Boot time.Duration
	// Generation is 1 for a snapshot of an instance that was booted, and one more
	// for each restore and save since.
	Generation int
	// Record: this instance was chosen to record the working set.
	Record bool
}

// Find returns the snapshot to start an instance from, or nil if there is
// none that can be used: then boot. With record, the Use may be told to
// record what the first request needs, unless that is known.
func (c *Catalog) Find(ctx context.Context, w Want, record bool) *Use {
	if u := c.here(w, record); u != nil {
		return u
	}
	patience := time.NewTimer(c.cfg.Patience)
	defer patience.Stop()
	select {
	case <-c.indexed:
	case <-patience.C:
		return nil
	case <-ctx.Done():
		return nil
	}
	loading := c.load(w)
	if loading == nil {
		return nil
	}
	select {
	case <-loading:
		return c.here(w, record)
	case <-patience.C:
		c.cfg.Log.Info("a snapshot is still on its way from the store: booting", "namespace", w.Namespace, "revision", w.Revision)
	case <-ctx.Done():
	}
	return nil
}

// Has tells whether Find would find something at once.
func (c *Catalog) Has(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.keys[key]
	return e != nil && e.copy != nil && !e.restores.blocked(c.cfg.Now())
}

// here takes the copy of a key into use, if there is one that is whole.
func (c *Catalog) here(w Want, record bool) *Use {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.keys[w.Key]
	if e == nil || e.copy == nil || e.restores.blocked(c.cfg.Now()) || c.closed {
		return nil
	}
	l := e.copy
	if err := l.rec.Manifest.Match(snapshot.Environment{Requirements: w.Requirements}); err != nil {
		c.refuse(e, l.rec.Snapshot, l.rec.Manifest.Labels, err)
		c.drop(l)
		return nil
	}
	if err := c.intact(l); err != nil {
		c.metrics.restores.WithLabelValues("damaged").Inc()
		c.tell(l.rec.Manifest.Labels, ReasonDamaged, fmt.Errorf("%w; it is not used any more", err))
		c.drop(l)
		return nil
	}
	l.users++
	now := c.cfg.Now()
	if now.Sub(l.rec.At) > time.Minute {
		l.rec.At = now
		c.noteUse(l)
	}
	u := &Use{c: c, l: l, key: w.Key, Image: c.image(l), Boot: bootOf(l.rec.Manifest.Labels), Generation: generationOf(l.rec.Manifest.Labels)}
	if record && (l.rec.WorkingSet == "" || l.outdated) && !l.recording && e.unrecorded < giveUp {
		u.Record, l.recording = true, true
	}
	return u
}

// noteUse has the store and the journal know, in the background. The caller
// holds mu.
func (c *Catalog) noteUse(l *local) {
	id := l.rec.Snapshot
	l.users++
	c.work.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
		defer cancel()
		if !id.IsZero() {
			if err := c.cfg.Store.Touch(ctx, id); err != nil && c.ctx.Err() == nil {
				c.cfg.Log.Debug("note the use of a snapshot", "snapshot", id, "error", err)
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !l.dead {
			if err := c.record(ctx, l); err != nil {
				c.cfg.Log.Debug("note the use of a snapshot", "error", err)
			}
		}
		c.leave(l)
	})
}

// refuse tells once that a snapshot is foreign. The caller holds mu.
func (c *Catalog) refuse(e *entry, id snapshot.ID, labels map[string]string, err error) {
	c.metrics.restores.WithLabelValues("foreign").Inc()
	if !e.foreign[id] {
		e.foreign[id] = true
		c.tell(labels, ReasonForeign, fmt.Errorf("%w; it is not used, the instance boots", err))
	}
}

// Release ends the use. More than one call does no harm.
func (u *Use) Release() {
	u.once.Do(func() {
		u.c.mu.Lock()
		defer u.c.mu.Unlock()
		if u.Record {
			u.l.recording = false // if it is not recorded by now, another one may
		}
		u.c.leave(u.l)
	})
}

// Current tells whether Find would still choose the same files.
func (u *Use) Current() bool {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	return !u.l.dead && u.c.image(u.l).WorkingSet == u.Image.WorkingSet && u.c.intact(u.l) == nil
}

// Worked notes that an instance was restored and is ready.
func (u *Use) Worked() {
	u.c.metrics.restores.WithLabelValues("ok").Inc()
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	e := u.c.key(u.key)
	e.restores.worked()
	e.saves.worked()
}

// Failed notes that an instance could not be restored. The files are not used
// again: what is in the store is read through, and either proves damaged and
// is quarantined, or is fetched once more. A snapshot that is whole and fails
// again and again is removed.
func (u *Use) Failed(cause error) {
	c := u.c
	c.metrics.restores.WithLabelValues("failed").Inc()
	c.mu.Lock()
	now := c.cfg.Now()
	e := c.key(u.key)
	e.restores.failed(now)
	if u.Record {
		e.unrecorded++
	}
	id, hopeless := u.l.rec.Snapshot, e.restores.failures >= giveUp
	labels := u.l.rec.Manifest.Labels
	if id.IsZero() || hopeless {
		u.l.forget = true
		e.saves.failed(now)
		e.restores.worked() // the next one is another
	}
	c.drop(u.l)
	c.mu.Unlock()
	c.tell(labels, ReasonFailed, fmt.Errorf("restore: %w; the instance boots", cause))
	switch {
	case id.IsZero():
	case hopeless:
		c.lose(id)
		c.mu.Lock()
		c.doom(id)
		c.mu.Unlock()
	default:
		c.goWork(func() { c.verify(id, labels) })
	}
}

// lose forgets that the store has a snapshot.
func (c *Catalog) lose(id snapshot.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.keys {
		for n, s := range e.stored {
			if s.id == id {
				e.stored = append(e.stored[:n:n], e.stored[n+1:]...)
				break
			}
		}
	}
}

// verify reads a snapshot in the store, and quarantines it if it is damaged.
func (c *Catalog) verify(id snapshot.ID, labels map[string]string) {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Minute)
	defer cancel()
	report, err := c.cfg.Store.Verify(ctx, id)
	if err != nil {
		if errors.Is(err, snapshot.ErrNotFound) {
			c.lose(id)
		} else if c.ctx.Err() == nil {
			c.cfg.Log.Warn("verify snapshot", "snapshot", id, "error", err)
		}
		return
	}
	if report.OK() {
		return
	}
	if report.Foreign() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.estrange(id, labels, fmt.Errorf("snapshot %s in the store: %w (%d problems)", id, report.Problems[0], len(report.Problems)))
		return
	}
	c.lose(id)
	c.metrics.restores.WithLabelValues("damaged").Inc()
	err = fmt.Errorf("snapshot %s in the store: %w (%d problems); it is removed", id, report.Problems[0], len(report.Problems))
	if qErr := c.cfg.Store.Quarantine(ctx, report); qErr != nil {
		err = errors.Join(err, qErr)
	}
	c.tell(labels, ReasonDamaged, err)
}
