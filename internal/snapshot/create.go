package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Creation is a snapshot in the making. Nothing of it can be seen until Commit
// has written its manifest, which is the last step; a creation that is given
// up, or whose process dies, leaves only objects that GC frees.
type Creation struct {
	s      *Store
	lease  *lease
	parent *Pin

	mu   sync.Mutex
	m    Manifest
	over bool
}

// Begin starts a snapshot. The manifest gives everything but the layers, which
// are added by WriteLayer and Compact (layers that it lists already must be in
// the store: a new manifest may take over those of another snapshot). A parent
// that it names must exist and stays until the creation is over. End it with
// Commit or Abort.
func (s *Store) Begin(ctx context.Context, m Manifest) (*Creation, error) {
	l, err := s.acquireAfter(ctx, leaseCreate, ID{}, leaseSweep, leaseEvict)
	if err != nil {
		return nil, fmt.Errorf("beginning a snapshot: %w", err)
	}
	c := &Creation{s: s, lease: l, m: m}
	c.m.Layers = slices.Clone(m.Layers)
	if !m.Parent.IsZero() {
		if c.parent, err = s.Pin(ctx, m.Parent); err != nil {
			l.release(ctx)
			return nil, fmt.Errorf("beginning a snapshot: its parent: %w", err)
		}
	}
	return c, nil
}

// add notes a layer that is stored.
func (c *Creation) add(ref LayerRef) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return errors.New("the creation is over")
	}
	if _, ok := c.m.Layer(ref.Role); ok {
		return fmt.Errorf("the snapshot has a layer %q already", ref.Role)
	}
	c.m.Layers = append(c.m.Layers, ref)
	return nil
}

// SetWorkingSet says which layer holds the working set.
func (c *Creation) SetWorkingSet(role string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m.WorkingSet = role
}

// Commit checks that all layers are there, writes the manifest and so makes
// the snapshot visible, whole and at once. The creation is over, whatever
// Commit returns.
func (c *Creation) Commit(ctx context.Context) (ID, error) {
	if !c.end() {
		return ID{}, errors.New("the creation is over")
	}
	defer c.close(ctx)
	if c.m.Version == 0 {
		c.m.Version = ManifestVersion
	}
	if c.m.Created.IsZero() {
		c.m.Created = c.s.opts.Now()
	}
	c.m.Created = c.m.Created.UTC().Round(0)
	data, err := c.m.Encode()
	if err != nil {
		return ID{}, err
	}
	ctx, cancel := c.lease.within(ctx)
	defer cancel()
	for _, l := range c.m.Layers {
		ix, err := c.s.readIndex(ctx, l.Digest)
		if err != nil {
			return ID{}, fmt.Errorf("committing the snapshot: layer %s: %w", l.Role, err)
		}
		if ix.size != l.Size {
			return ID{}, fmt.Errorf("committing the snapshot: layer %s has %d bytes, not %d", l.Role, ix.size, l.Size)
		}
	}
	id := DigestOf(data)
	if err := c.publish(ctx, id, data); err != nil {
		return ID{}, fmt.Errorf("committing the snapshot: %w", err)
	}
	return id, nil
}

func (c *Creation) publish(ctx context.Context, id ID, data []byte) error {
	if err := c.lease.check(); err != nil {
		return err
	}
	if err := c.s.put(ctx, manifestName(id), data); err != nil {
		return err
	}
	if err := c.s.Touch(ctx, id); err != nil {
		c.s.opts.Log.Warn("the use of a new snapshot was not noted", "snapshot", id, "error", err)
	}
	return nil
}

// Abort gives the creation up. It does nothing after Commit.
func (c *Creation) Abort(ctx context.Context) {
	if c.end() {
		c.close(ctx)
	}
}

func (c *Creation) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.over
	c.over = true
	return !was
}

func (c *Creation) close(ctx context.Context) {
	if c.parent != nil {
		c.parent.Release(ctx)
	}
	c.lease.release(ctx)
}

// Pin keeps a snapshot from being deleted or collected.
type Pin struct {
	ID       ID
	Manifest *Manifest
	lease    *lease
	once     sync.Once
}

// Pin takes a snapshot into use, notes the use, and keeps the snapshot until
// it is released or this process has been dead for a lease's time.
func (s *Store) Pin(ctx context.Context, id ID) (*Pin, error) {
	l, err := s.acquireAfter(ctx, leasePin, id, leaseEvict)
	if err != nil {
		return nil, fmt.Errorf("pinning snapshot %s: %w", id, err)
	}
	m, err := s.readManifest(ctx, id)
	if err != nil {
		l.release(ctx)
		return nil, err
	}
	if err := s.Touch(ctx, id); err != nil {
		s.opts.Log.Warn("the use of a snapshot was not noted", "snapshot", id, "error", err)
	}
	return &Pin{ID: id, Manifest: m, lease: l}, nil
}

// Release lets the snapshot go. More than one call does no harm.
func (p *Pin) Release(ctx context.Context) {
	p.once.Do(func() { p.lease.release(ctx) })
}

// have tells whether an object is stored.
func (s *Store) have(ctx context.Context, name string) (backend.Info, bool, error) {
	info, err := s.b.Stat(ctx, name)
	if errors.Is(err, backend.ErrNotExist) {
		return info, false, nil
	}
	return info, err == nil, err
}
