package snapshots

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// recover takes over the copies of an earlier process, and removes those that
// it did not finish.
func (c *Catalog) recover(ctx context.Context) error {
	records, err := c.cfg.Journal.List(ctx, kindCopy)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	whole := map[string]*local{}
	for _, r := range records {
		known[r.ID] = true
		l := &local{name: r.ID}
		if !plainName(l.name) {
			continue // never ours
		}
		if err := json.Unmarshal(r.Data, &l.rec); err != nil {
			c.cfg.Log.Warn("record of a snapshot's files", "id", r.ID, "error", err)
		}
		if l.rec.Whole && (l.rec.Synced || l.rec.Boot == c.boot) {
			err := c.own(l)
			if err == nil {
				whole[l.name] = l
				continue
			}
			c.metrics.restores.WithLabelValues("damaged").Inc()
			c.tell(l.rec.Manifest.Labels, ReasonDamaged, err)
		}
		c.remove(l)
	}
	c.adoptAll(whole)
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !known[e.Name()] {
			if err := os.RemoveAll(filepath.Join(c.cfg.Dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				c.cfg.Log.Warn("remove what is no snapshot's", "error", err)
			}
		}
	}
	return nil
}

// adoptAll takes over the copies whose files are right, if those of their
// parents are, too.
func (c *Catalog) adoptAll(all map[string]*local) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range all {
		if slices.ContainsFunc(l.rec.Parents, func(name string) bool { return all[name] == nil }) {
			c.tell(l.rec.Manifest.Labels, ReasonDamaged, errors.New("what the snapshot differs from is gone"))
			c.remove(l)
			continue
		}
		c.copies[l.name] = l
	}
	for _, l := range c.copies {
		l.dead = l.rec.Superseded
		c.adoptParents(l)
	}
	for _, l := range all {
		switch {
		case c.copies[l.name] != l:
		case !l.dead:
			c.adopt(l)
		case l.children == 0:
			c.bury(l)
		}
	}
}

// adopt makes a copy from before the start that of its key, the newest if
// there are several. The caller holds mu.
func (c *Catalog) adopt(l *local) {
	_, hasSet := l.rec.Manifest.Layer(roleWorkingSet)
	l.unstored = l.rec.Snapshot.IsZero() || l.rec.WorkingSet != "" && !hasSet
	e := c.key(l.rec.Manifest.Labels[LabelKey])
	if e.copy == nil {
		e.copy = l
		return
	}
	old := e.copy
	if old.rec.Manifest.Created.After(l.rec.Manifest.Created) {
		old, l = l, old
	}
	e.copy = l
	c.drop(old)
}
