package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

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
	id, layers, err := c.write(ctx, l, m, files, set)
	if err != nil {
		return err
	}
	m.Layers = layers

	c.mu.Lock()
	defer c.mu.Unlock()
	gone := []snapshot.ID{}
	if !before.IsZero() && before != id {
		gone = append(gone, before)
	}
	if l.forget {
		c.work.Go(func() { c.deleteStored(append(gone, id)) })
		return nil
	}
	l.rec.Snapshot, l.storedAt = id, c.cfg.Now()
	if l.dead {
		return nil
	}
	if l.rec.WorkingSet == set {
		l.rec.Manifest, l.rec.Synced = m, true
	} // else another was recorded meanwhile, which comes next
	if err := c.intact(l); err != nil {
		l.forget = true
		c.drop(l)
		c.work.Go(func() { c.deleteStored(append(gone, id)) })
		c.tell(l.rec.Manifest.Labels, ReasonDamaged, fmt.Errorf("while it was stored: %w", err))
		return nil
	}
	if err := c.record(ctx, l); err != nil {
		return err
	}
	e := c.key(m.Labels[LabelKey])
	for _, s := range e.stored {
		// Those that this one supersedes; others are for other machines.
		if s.id != id && s.m.Match(snapshot.Environment{Requirements: m.Requirements}) == nil && !slices.Contains(gone, s.id) {
			gone = append(gone, s.id)
		}
	}
	e.stored = slices.DeleteFunc(e.stored, func(s stored) bool { return s.id == id || slices.Contains(gone, s.id) })
	e.stored = slices.Insert(e.stored, 0, stored{id, &m, l.storedAt})
	if len(gone) > 0 {
		c.work.Go(func() { c.deleteStored(gone) })
	}
	return nil
}

// write makes the snapshot in the store, of the layers that are there already
// and of files.
func (c *Catalog) write(ctx context.Context, l *local, m snapshot.Manifest, files []string, set string) (snapshot.ID, []snapshot.LayerRef, error) {
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
		ref, err := writeFile(ctx, cr, role, filepath.Join(c.dir(l), name))
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

func writeFile(ctx context.Context, cr *snapshot.Creation, role, path string) (snapshot.LayerRef, error) {
	f, err := os.Open(path)
	if err != nil {
		return snapshot.LayerRef{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return snapshot.LayerRef{}, err
	}
	return cr.WriteLayer(ctx, role, f, info.Size(), snapshot.LayerOptions{})
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// load begins to bring the newest matching snapshot of the store onto this
// machine, and returns what is closed at the end; nil if there is none.
func (c *Catalog) load(w Want) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.keys[w.Key]
	if e == nil || c.closed || e.restores.blocked(c.cfg.Now()) {
		return nil
	}
	if e.loading != nil {
		return e.loading
	}
	s := c.match(e, w)
	if s == nil {
		return nil
	}
	done := make(chan struct{})
	e.loading = done
	from := *s
	c.work.Go(func() {
		l, err := c.materialize(from)
		c.mu.Lock()
		e.loading = nil
		if err == nil {
			if c.keys[w.Key] == e && e.copy == nil {
				c.put(e, l)
			} else { // forgotten, or made anew meanwhile
				l.dead = true
				c.bury(l)
			}
		}
		c.mu.Unlock()
		close(done)
		if err == nil || c.ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		e.restores.failed(c.cfg.Now())
		c.mu.Unlock()
		if errors.Is(err, snapshot.ErrDamaged) || errors.Is(err, snapshot.ErrNotFound) {
			c.verify(from.id, from.m.Labels)
			return
		}
		c.tell(from.m.Labels, ReasonFailed, fmt.Errorf("fetch from the store: %w", err))
	})
	return done
}

// materialize makes a copy of a snapshot in the store.
func (c *Catalog) materialize(s stored) (*local, error) {
	ctx, cancel := context.WithTimeout(c.ctx, storeTimeout)
	defer cancel()
	pinning, cancelPin := context.WithTimeout(ctx, time.Minute)
	pin, err := c.cfg.Store.Pin(pinning, s.id)
	cancelPin()
	if err != nil {
		return nil, err
	}
	defer pin.Release(context.WithoutCancel(ctx))
	l, err := c.newCopy(ctx, *pin.Manifest)
	if err != nil {
		return nil, err
	}
	for _, ref := range pin.Manifest.Layers {
		name := filepath.Join(imageDir, ref.Role)
		if ref.Role == roleWorkingSet {
			name = "ws-" + s.id.Hex()[:16]
			l.rec.WorkingSet = name
		} else if !plainName(ref.Role) {
			err = fmt.Errorf("snapshot %s: layer %.40q cannot be a file", s.id, ref.Role)
		}
		if err == nil {
			err = c.materializeLayer(ctx, ref, filepath.Join(c.dir(l), name))
		}
		if err != nil {
			c.remove(l)
			return nil, err
		}
	}
	err = c.examine(l)
	if err == nil {
		for _, dir := range []string{filepath.Join(c.dir(l), imageDir), c.dir(l), c.cfg.Dir} {
			err = errors.Join(err, syncFile(dir))
		}
	}
	if err == nil {
		l.rec.Snapshot, l.rec.Whole, l.rec.Synced = s.id, true, true
		err = c.record(ctx, l)
	}
	if err != nil {
		c.remove(l)
		return nil, err
	}
	return l, nil
}

func (c *Catalog) materializeLayer(ctx context.Context, ref snapshot.LayerRef, path string) (err error) {
	layer, err := c.cfg.Store.OpenLayer(ctx, ref.Digest)
	if err != nil {
		return err
	}
	defer layer.Close()
	var fs unix.Statfs_t
	if unix.Statfs(filepath.Dir(path), &fs) == nil && layer.Size() > 0 {
		var data int64
		for _, x := range layer.Extents() {
			data += x.Length
		}
		if free := int64(fs.Bavail) * fs.Bsize; data > free {
			return fmt.Errorf("layer %s has %d MiB, the disk has %d MiB free", ref.Role, data>>20, free>>20)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := layer.Materialize(ctx, f); err != nil {
		return err
	}
	return f.Sync()
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
