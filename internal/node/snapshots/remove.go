package snapshots

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/internal/snapshot"
)

// kindDoomed is the kind of the journal's records of snapshots that are to be
// removed from the store.
const kindDoomed = "snapshot-removal"

const (
	// deleteTimeout bounds the removal of one snapshot.
	deleteTimeout = time.Minute
	// giveUpBusy is after how many tries a snapshot stays for the limit to
	// take, because somebody reads it or builds upon it all the time.
	giveUpBusy = 10
)

// doom has snapshots removed from the store: at once or, while it cannot be
// reached, when it can be again, by this process or the next. From now on
// nothing is started from them. The caller holds mu.
func (c *Catalog) doom(ids ...snapshot.ID) {
	for _, id := range ids {
		if id.IsZero() || c.doomed[id] != nil {
			continue
		}
		c.doomed[id] = &backoff{}
		if err := c.cfg.Journal.Put(context.WithoutCancel(c.ctx), kindDoomed, id.Hex(), struct{}{}); err != nil {
			c.cfg.Log.Warn("note that a snapshot is to be removed", "snapshot", id, "error", err)
		}
	}
	select {
	case c.removal <- struct{}{}:
	default:
	}
}

// recoverDoomed takes over what an earlier process could not remove.
func (c *Catalog) recoverDoomed(ctx context.Context) error {
	records, err := c.cfg.Journal.List(ctx, kindDoomed)
	if err != nil {
		return err
	}
	for _, r := range records {
		id, err := snapshot.ParseDigest(r.ID)
		if err != nil {
			return fmt.Errorf("record of a snapshot to remove: %w", err)
		}
		c.doomed[id] = &backoff{}
	}
	return nil
}

// removeAll removes what is doomed, until the catalog closes.
func (c *Catalog) removeAll() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(c.removeDue())
		select {
		case <-c.ctx.Done():
			return
		case <-c.removal:
		case <-timer.C:
		}
	}
}

// removeDue removes what is due, and says when to come again.
func (c *Catalog) removeDue() time.Duration {
	c.mu.Lock()
	ask := len(c.forgotten) > 0
	c.mu.Unlock()
	if ask {
		if err := c.Refresh(c.ctx); err != nil && c.ctx.Err() == nil {
			c.cfg.Log.Debug("ask the store for snapshots of what is gone, later", "error", err)
		}
	}
	left := c.dueRemovals()
	for progress := true; progress && len(left) > 0; {
		progress = false
		var busy []snapshot.ID // perhaps only by another one of these
		for n, id := range left {
			err := c.removeStored(id)
			if c.ctx.Err() != nil {
				return time.Hour
			}
			if errors.Is(err, snapshot.ErrInUse) {
				busy = append(busy, id)
				continue
			}
			if err != nil { // the store is away: no use to wait for it for each
				c.postpone(err, append(busy, left[n:]...)...)
				return c.nextRemoval()
			}
			progress = true
		}
		left = busy
	}
	c.postpone(snapshot.ErrInUse, left...)
	return c.nextRemoval()
}

func (c *Catalog) dueRemovals() []snapshot.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []snapshot.ID
	for id, b := range c.doomed {
		if !b.blocked(c.cfg.Now()) {
			ids = append(ids, id)
		}
	}
	return ids
}

// removeStored removes a snapshot; that there is none is as good.
func (c *Catalog) removeStored(id snapshot.ID) error {
	ctx, cancel := context.WithTimeout(c.ctx, deleteTimeout)
	defer cancel()
	if err := c.cfg.Store.Delete(ctx, id); err != nil && !errors.Is(err, snapshot.ErrNotFound) {
		return err
	}
	c.Spare(id)
	return nil
}

// Spare ends that a snapshot is to be removed from the store: it is gone, or
// somebody has brought it there anew.
func (c *Catalog) Spare(id snapshot.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.doomed, id)
	if err := c.cfg.Journal.Delete(context.WithoutCancel(c.ctx), kindDoomed, id.Hex()); err != nil {
		c.cfg.Log.Warn("forget that a snapshot was to be removed", "snapshot", id, "error", err)
	}
}

// postpone notes that snapshots could not be removed.
func (c *Catalog) postpone(err error, ids ...snapshot.ID) {
	for _, id := range ids {
		c.mu.Lock()
		b := c.doomed[id]
		if b == nil { // spared meanwhile
			c.mu.Unlock()
			continue
		}
		b.failed(c.cfg.Now())
		hopeless := errors.Is(err, snapshot.ErrInUse) && b.failures >= giveUpBusy
		until := b.until
		c.mu.Unlock()
		if hopeless {
			c.cfg.Log.Warn("a snapshot stays in the store until its limit is reached", "snapshot", id, "error", err)
			c.Spare(id)
			continue
		}
		c.cfg.Log.Warn("remove snapshot from the store, will try again", "snapshot", id, "error", err, "at", until)
	}
}

func (c *Catalog) nextRemoval() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := time.Hour
	if len(c.forgotten) > 0 {
		wait = time.Minute
	}
	for _, b := range c.doomed {
		wait = min(wait, max(time.Second, b.until.Sub(c.cfg.Now())))
	}
	return wait
}
