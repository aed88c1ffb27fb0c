package snapshot

import (
	"context"
	"fmt"
)

// Compact stores a layer and its ancestors as one layer without a parent and
// adds it to the snapshot in the given role. Chunks that come whole from one
// layer of the chain are shared with it.
func (c *Creation) Compact(ctx context.Context, role string, d Digest) (LayerRef, error) {
	l, err := c.s.OpenLayer(ctx, d)
	if err != nil {
		return LayerRef{}, fmt.Errorf("compacting: %w", err)
	}
	defer l.Close()
	extents := l.Extents()
	if extents == nil {
		extents = []Extent{} // nothing, where nil would mean everything
	}
	return c.WriteLayer(ctx, role, l, l.Size(), LayerOptions{
		Extents: extents, PageSize: l.PageSize(), ChunkPages: l.chain[0].chunkPages,
	})
}

// Compact makes a new snapshot like an old one, but of layers without parents,
// and without a parent itself. One that is so already is returned as it is.
func (s *Store) Compact(ctx context.Context, id ID) (ID, error) {
	pin, err := s.Pin(ctx, id)
	if err != nil {
		return ID{}, fmt.Errorf("compacting: %w", err)
	}
	defer pin.Release(ctx)
	m := *pin.Manifest
	flat := m.Parent.IsZero()
	for _, ref := range m.Layers {
		depth, err := s.Depth(ctx, ref.Digest)
		if err != nil {
			return ID{}, fmt.Errorf("compacting: %w", err)
		}
		flat = flat && depth == 1
	}
	if flat {
		return id, nil
	}
	layers := m.Layers
	m.Layers, m.Parent = nil, ID{}
	c, err := s.Begin(ctx, m)
	if err != nil {
		return ID{}, err
	}
	defer c.Abort(ctx)
	for _, ref := range layers {
		if _, err := c.Compact(ctx, ref.Role, ref.Digest); err != nil {
			return ID{}, err
		}
	}
	return c.Commit(ctx)
}
