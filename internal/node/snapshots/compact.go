package snapshots

import (
	"context"
	"errors"
	"slices"

	"github.com/skep-dev/skep/internal/snapshot"
)

// Compacted says what became of a snapshot that was compacted.
type Compacted struct {
	ID      snapshot.ID   // the whole one; the old one's if that was whole
	Removed []snapshot.ID // the old one, and what it alone was a difference from
}

// Compact stores a snapshot that is a difference from others as a whole one,
// which takes its place.
func (c *Catalog) Compact(ctx context.Context, id snapshot.ID) (Compacted, error) {
	store := c.cfg.Store
	was, err := store.Describe(ctx, id)
	if err != nil {
		return Compacted{}, err
	}
	made, err := store.Compact(ctx, id)
	out := Compacted{ID: made}
	if err != nil || made == id {
		return out, err
	}
	m, err := store.Describe(ctx, made)
	if err != nil {
		return out, err
	}
	c.replace(ctx, id, made, m)
	// The old one, and those below it that are of the same key: others stay.
	for at, key := id, was.Labels[LabelKey]; !at.IsZero() && was.Labels[LabelKey] == key; {
		switch err := store.Delete(ctx, at); {
		case errors.Is(err, snapshot.ErrInUse):
			return out, nil
		case err != nil && !errors.Is(err, snapshot.ErrNotFound):
			return out, err
		case err == nil:
			out.Removed = append(out.Removed, at)
		}
		if at = was.Parent; at.IsZero() {
			break
		}
		if was, err = store.Describe(ctx, at); err != nil {
			return out, nil //nolint:nilerr // it has gone already, or cannot be judged
		}
	}
	return out, nil
}

// replace makes copies of one snapshot in the store those of another.
func (c *Catalog) replace(ctx context.Context, old, made snapshot.ID, m *snapshot.Manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.copies {
		if l.rec.Snapshot != old || l.dirty() {
			continue
		}
		l.rec.Snapshot, l.storedAt = made, c.cfg.Now()
		l.rec.Manifest.Layers, l.rec.Manifest.Parent = slices.Clone(m.Layers), m.Parent
		if err := c.record(ctx, l); err != nil {
			c.cfg.Log.Warn("note that a snapshot was compacted", "snapshot", made, "error", err)
		}
	}
	for _, e := range c.keys {
		for n := range e.stored {
			if e.stored[n].id == old {
				e.stored = slices.Insert(e.stored, n, stored{made, m, c.cfg.Now()})
				break
			}
		}
	}
}
