package snapshots

import (
	"errors"

	"github.com/skep-dev/skep/internal/snapshot"
)

// A snapshot of another version of this program, or with layers of one, is not
// used, told once where it would have been, and left to those who know it.

// alien is such a snapshot.
type alien struct {
	labels map[string]string
	err    error
}

// estrange notes that a snapshot is of another version. The caller holds mu.
func (c *Catalog) estrange(id snapshot.ID, labels map[string]string, err error) {
	e := c.key(labels[LabelKey])
	e.alien[id] = alien{labels, err}
	c.refuse(e, id, labels, err)
}

// aliens takes over which snapshots of the store are of another version, and
// says the same as before of others that are still there. The caller holds mu.
func (c *Catalog) aliens(all []snapshot.Entry) {
	there := map[snapshot.ID]bool{}
	for _, s := range all {
		there[s.ID] = true
		if !errors.Is(s.Err, snapshot.ErrForeign) || c.doomed[s.ID] != nil {
			continue
		}
		key := s.Labels[LabelKey]
		e := c.key(key)
		if _, known := e.alien[s.ID]; !known {
			e.alien[s.ID] = alien{s.Labels, s.Err}
			if key == "" { // nobody will ask for it
				c.cfg.Log.Warn("a snapshot in the store is of another version", "snapshot", s.ID, "error", s.Err)
			}
		}
	}
	c.metrics.foreign.Set(0)
	for _, e := range c.keys {
		for id := range e.alien {
			if !there[id] {
				delete(e.alien, id)
			}
		}
		c.metrics.foreign.Add(float64(len(e.alien)))
	}
}
