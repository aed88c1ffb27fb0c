package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapshot"
)

// roleWorkingSet is the role of the layer with the working set. The roles of
// the others are the names of files.
const roleWorkingSet = "working-set"

const storeTimeout = 30 * time.Minute // for one snapshot

// storeAll brings copies into the store, one after another, until the catalog
// closes.
func (c *Catalog) storeAll() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := c.storeDue()
		timer.Reset(next)
		select {
		case <-c.ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// storeDue stores what is to be stored, and says when to come again.
func (c *Catalog) storeDue() time.Duration {
	for c.ctx.Err() == nil {
		l, wait := c.nextUnstored()
		if l == nil {
			return wait
		}
		err := c.storeOne(l)
		c.mu.Lock()
		l.busy = false
		if err != nil {
			l.unstored = true
			l.store.failed(c.cfg.Now())
			if c.ctx.Err() == nil && !l.dead {
				c.metrics.stores.WithLabelValues("failed").Inc()
				c.cfg.Log.Warn("store snapshot, will try again", "revision", l.rec.Manifest.Labels[LabelRevision], "error", err, "at", l.store.until)
			}
		} else {
			c.metrics.stores.WithLabelValues("ok").Inc()
			l.store.worked()
		}
		c.leave(l)
		c.mu.Unlock()
	}
	return time.Hour
}

// nextUnstored takes a copy into use that is not in the store.
func (c *Catalog) nextUnstored() (*local, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := time.Hour
	now := c.cfg.Now()
	for _, l := range c.copies {
		if !l.unstored || l.dead || l.busy {
			continue
		}
		if l.store.blocked(now) {
			wait = min(wait, l.store.until.Sub(now))
			continue
		}
		l.users++
		l.busy, l.unstored = true, false
		return l, 0
	}
	return nil, wait
}

// storeOne syncs a copy and writes what the store lacks of it.
func (c *Catalog) storeOne(l *local) error {
	ctx, cancel := context.WithTimeout(c.ctx, storeTimeout)
	defer cancel()
	c.mu.Lock()
	m, set, before := l.rec.Manifest, l.rec.WorkingSet, l.rec.Snapshot
	m.Layers = slices.Clone(m.Layers)
	files := make([]string, 0, len(l.rec.Files))
	for name := range l.rec.Files {
		files = append(files, name)
	}
	c.mu.Unlock()
	slices.Sort(files)
	for _, name := range files {
		if err := syncFile(filepath.Join(c.dir(l), name)); err != nil {
			return err
		}
	}
	for _, dir := range []string{filepath.Join(c.dir(l), imageDir), c.dir(l), c.cfg.Dir} {
		if err := syncFile(dir); err != nil {
			return err
		}
	}
	id, m, err := c.write(ctx, l, m, files, set)
	if err != nil {
		return err
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	gone := []snapshot.ID{}
	if !before.IsZero() && before != id {
		gone = append(gone, before)
	}
	if l.forget {
		c.doom(append(gone, id)...)
		return nil
	}
	l.rec.Snapshot, l.storedAt = id, c.cfg.Now()
	if l.dead {
		// What has superseded it, and is stored after it, removes it.
		c.key(m.Labels[LabelKey]).add(stored{id, &m, l.storedAt})
		return nil
	}
	if l.rec.WorkingSet == set {
		l.rec.Manifest, l.rec.Synced = m, true
	} // else another was recorded meanwhile, which comes next
	if err := c.intact(l); err != nil {
		l.forget = true
		c.drop(l)
		c.doom(append(gone, id)...)
		c.tell(l.rec.Manifest.Labels, ReasonDamaged, fmt.Errorf("while it was stored: %w", err))
		return nil
	}
	if err := c.record(ctx, l); err != nil {
		return err
	}
	e := c.key(m.Labels[LabelKey])
	below := e.ancestors(&m)
	for _, s := range e.stored {
		// Those that this one supersedes; others are for other machines.
		if _, foreign := e.alien[s.id]; !foreign && s.id != id && !below[s.id] && s.m.Match(snapshot.Environment{Requirements: m.Requirements}) == nil && !slices.Contains(gone, s.id) {
			gone = append(gone, s.id)
		}
	}
	e.stored = slices.DeleteFunc(e.stored, func(s stored) bool { return slices.Contains(gone, s.id) })
	e.add(stored{id, &m, l.storedAt})
	c.doom(gone...)
	return nil
}

// add notes a snapshot in the store, the newest first.
func (e *entry) add(s stored) {
	e.stored = slices.DeleteFunc(e.stored, func(x stored) bool { return x.id == s.id })
	e.stored = slices.Insert(e.stored, 0, s)
}

// write makes the snapshot in the store, of the layers that are there already
// and of files, and returns the manifest with all layers. If what it is a
// difference from has gone, it is one without a parent.
func (c *Catalog) write(ctx context.Context, l *local, m snapshot.Manifest, files []string, set string) (snapshot.ID, snapshot.Manifest, error) {
	base := c.storedBase(ctx, l, m)
	m.Parent = base.id
	id, layers, err := c.writeOn(ctx, l, m, files, set, base)
	if err != nil && !base.id.IsZero() && unusable(err) {
		m.Parent = snapshot.ID{}
		id, layers, err = c.writeOn(ctx, l, m, files, set, storedBase{})
	}
	m.Layers = layers
	return id, m, err
}

// unusable tells whether an error is about what is in the store, and not about
// reaching it.
func unusable(err error) bool {
	return errors.Is(err, snapshot.ErrNotFound) || errors.Is(err, snapshot.ErrDamaged) || errors.Is(err, snapshot.ErrForeign)
}

func (c *Catalog) writeOn(ctx context.Context, l *local, m snapshot.Manifest, files []string, set string, base storedBase) (snapshot.ID, []snapshot.LayerRef, error) {
	have := m.Layers
	m.WorkingSet = ""
	if len(have) > 0 {
		m.Created = c.cfg.Now().UTC().Round(0) // another one than before
	}
	cr, err := c.cfg.Store.Begin(ctx, m)
	if err != nil {
		return snapshot.ID{}, nil, err
	}
	defer cr.Abort(context.WithoutCancel(ctx))
	layers := slices.Clone(have)
	for _, name := range files {
		role := filepath.Base(name)
		if name == set {
			role = roleWorkingSet
		}
		if slices.ContainsFunc(have, func(r snapshot.LayerRef) bool { return r.Role == role }) {
			continue
		}
		write := func() (snapshot.LayerRef, error) {
			return writeFile(ctx, cr, role, filepath.Join(c.dir(l), name), snapshot.LayerOptions{})
		}
		if role == sandbox.FileMemory && len(l.rec.Parents) > 0 {
			write = func() (snapshot.LayerRef, error) { return c.writeMemory(ctx, cr, l, base) }
		}
		ref, err := write()
		if err != nil {
			return snapshot.ID{}, nil, err
		}
		layers = append(layers, ref)
	}
	if set != "" {
		cr.SetWorkingSet(roleWorkingSet)
	}
	id, err := cr.Commit(ctx)
	return id, layers, err
}

func writeFile(ctx context.Context, cr *snapshot.Creation, role, path string, o snapshot.LayerOptions) (snapshot.LayerRef, error) {
	f, err := os.Open(path)
	if err != nil {
		return snapshot.LayerRef{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return snapshot.LayerRef{}, err
	}
	return cr.WriteLayer(ctx, role, f, info.Size(), o)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Stored waits until the newest snapshot of a key is in the store, and returns
// its ID.
func (c *Catalog) Stored(ctx context.Context, key string) (snapshot.ID, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		c.mu.Lock()
		var l *local
		if e := c.keys[key]; e != nil {
			l = e.copy
		}
		var id snapshot.ID
		failing, dirty := false, false
		if l != nil {
			id, dirty, failing = l.rec.Snapshot, l.dirty(), l.store.failures > 0
		}
		c.mu.Unlock()
		switch {
		case l == nil:
			return id, errors.New("the snapshot is gone again")
		case failing:
			return id, errors.New("the snapshot is on this machine, but could not be stored yet: see the log")
		case !dirty && !id.IsZero():
			return id, nil
		}
		// The storing takes long enough to be asked about.
		select {
		case <-ctx.Done():
			return id, ctx.Err()
		case <-c.ctx.Done():
			return id, errors.New("the node is being stopped")
		case <-time.After(pause):
		}
	}
}
