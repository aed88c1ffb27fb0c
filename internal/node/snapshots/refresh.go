package snapshots

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/snapshot"
)

// index reads the store until that has worked once.
func (c *Catalog) index() {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		err := c.Refresh(c.ctx)
		if err == nil {
			close(c.indexed)
			return
		}
		if c.ctx.Err() == nil {
			c.cfg.Log.Warn("read the snapshot store, will try again", "error", err)
		}
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// Refresh reads anew what the store holds: it may have other users.
func (c *Catalog) Refresh(ctx context.Context) error {
	began := c.cfg.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	all, err := c.cfg.Store.List(ctx)
	if err != nil {
		return err
	}
	found := map[string][]stored{}
	ids := map[snapshot.ID]bool{}
	for _, s := range all {
		if errors.Is(s.Err, snapshot.ErrForeign) {
			continue // see aliens
		}
		if s.Err != nil {
			c.cfg.Log.Warn("a snapshot in the store cannot be used", "snapshot", s.ID, "error", s.Err)
			continue
		}
		ids[s.ID] = true
		if key := s.Manifest.Labels[LabelKey]; key != "" {
			found[key] = append(found[key], stored{id: s.ID, m: s.Manifest})
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetListed(all, began)
	for key, list := range found {
		c.key(key)
		found[key] = slices.DeleteFunc(list, func(s stored) bool { return c.doomed[s.id] != nil })
	}
	c.aliens(all)
	for key, e := range c.keys {
		// What was stored since the list was made stays.
		for _, s := range e.stored {
			if !ids[s.id] && s.at.After(began) {
				found[key] = append(found[key], s)
			}
		}
		e.stored = found[key]
		slices.SortStableFunc(e.stored, func(a, b stored) int {
			return cmp.Or(b.m.Created.Compare(a.m.Created), cmp.Compare(a.id.Hex(), b.id.Hex()))
		})
	}
	for _, l := range c.copies {
		id := l.rec.Snapshot
		if !l.dirty() && !id.IsZero() && !ids[id] && l.storedAt.Before(began) {
			c.drop(l) // removed from the store: by its limit, or by somebody
		}
	}
	return nil
}

// Collect keeps the store and the copies within their limits.
func (c *Catalog) Collect(ctx context.Context) (snapshot.GCStats, error) {
	stats, err := c.cfg.Store.GC(ctx, snapshot.Policy{MaxBytes: c.cfg.MaxStore})
	if err != nil {
		return stats, err
	}
	if err := c.Refresh(ctx); err != nil {
		return stats, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shrink()
	return stats, nil
}
