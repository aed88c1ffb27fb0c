package snapshots

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/snapshot"
)

// kindForgotten is the kind of the journal's records of revisions that are gone
// while the store could not be asked yet what it has of them.
const kindForgotten = "snapshot-forget"

// revision names one.
type revision struct{ namespace, name string }

func (r revision) String() string { return r.namespace + "/" + r.name }

func (r revision) is(labels map[string]string) bool {
	return labels[LabelNamespace] == r.namespace && labels[LabelRevision] == r.name
}

// Forget removes all snapshots of a revision that is gone: they hold what was
// in its memory. Those that the store cannot remove now, or cannot tell of, go
// when it can.
func (c *Catalog) Forget(namespace, name string) {
	r := revision{namespace, name}
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []snapshot.ID
	for key, e := range c.keys {
		mine := e.copy != nil && r.is(e.copy.rec.Manifest.Labels)
		for _, s := range e.stored {
			if r.is(s.m.Labels) {
				mine = true
				ids = append(ids, s.id)
			}
		}
		for id, a := range e.alien { // this is no guess: its owner goes
			if r.is(a.labels) && !slices.Contains(ids, id) {
				mine = true
				ids = append(ids, id)
			}
		}
		if mine {
			delete(c.keys, key)
		}
	}
	for _, l := range c.copies {
		if r.is(l.rec.Manifest.Labels) {
			if !l.rec.Snapshot.IsZero() && !slices.Contains(ids, l.rec.Snapshot) {
				ids = append(ids, l.rec.Snapshot)
			}
			l.forget = true
			c.drop(l)
		}
	}
	at := c.cfg.Now()
	c.forgotten[r] = at
	if err := c.cfg.Journal.Put(context.WithoutCancel(c.ctx), kindForgotten, r.String(), at); err != nil {
		c.cfg.Log.Warn("note that a revision is gone", "revision", r, "error", err)
	}
	c.doom(ids...)
}

// recoverForgotten takes over what an earlier process could not ask for.
func (c *Catalog) recoverForgotten(ctx context.Context) error {
	records, err := c.cfg.Journal.List(ctx, kindForgotten)
	if err != nil {
		return err
	}
	for _, r := range records {
		var at time.Time
		if err := json.Unmarshal(r.Data, &at); err != nil {
			return fmt.Errorf("record of a revision that is gone: %w", err)
		}
		namespace, name, _ := strings.Cut(r.ID, "/")
		c.forgotten[revision{namespace, name}] = at
	}
	return nil
}

// forgetListed dooms what a list of the store, begun then, has of revisions
// that were gone by then. What was made later is of others of the same name.
// The caller holds mu.
func (c *Catalog) forgetListed(all []snapshot.Entry, began time.Time) {
	for r, at := range c.forgotten {
		if at.After(began) {
			continue // the list may be older than a snapshot of it
		}
		for _, s := range all {
			switch {
			case s.Manifest == nil && r.is(s.Labels),
				s.Manifest != nil && r.is(s.Manifest.Labels) && !s.Manifest.Created.After(at):
				c.doom(s.ID)
			}
		}
		delete(c.forgotten, r)
		if err := c.cfg.Journal.Delete(context.WithoutCancel(c.ctx), kindForgotten, r.String()); err != nil {
			c.cfg.Log.Warn("forget that a revision is gone", "revision", r, "error", err)
		}
	}
}
