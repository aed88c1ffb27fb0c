package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapshot"
)

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
		foreign := errors.Is(err, snapshot.ErrForeign)
		if foreign {
			c.estrange(from.id, from.m.Labels, err)
		}
		c.mu.Unlock()
		close(done)
		if err == nil || foreign || c.ctx.Err() != nil {
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
	if ref.Role == sandbox.FileMemory {
		// A monitor may map it as a user of its own. What keeps others away is
		// its folder.
		if err := f.Chmod(0o644); err != nil {
			return err
		}
	}
	if err := layer.Materialize(ctx, f); err != nil {
		return err
	}
	return f.Sync()
}
