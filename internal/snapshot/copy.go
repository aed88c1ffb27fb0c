package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// CopyStats tell what a copy moved.
type CopyStats struct {
	Snapshots int   // manifests written: the snapshot and ancestors that lacked
	Objects   int64 // layers and chunks copied
	Bytes     int64 // bytes copied, as stored
	Present   int64 // layers and chunks that were there already
}

// Copy brings a snapshot and its ancestors from one store into another. Only
// what is missing there is copied, each object verified on the way; a manifest
// is written after everything that it needs. What is there already is taken to
// be whole, which Verify can tell. The source is written to only to keep the
// snapshot meanwhile; where that is not allowed, it is copied without, and the
// copy fails if something is removed under its hands.
func Copy(ctx context.Context, dst, src *Store, id ID) (CopyStats, error) {
	var stats CopyStats
	pin, err := src.Pin(ctx, id)
	switch {
	case err == nil:
		defer pin.Release(ctx)
	case errors.Is(err, errNoLease) && ctx.Err() == nil:
		src.opts.Log.Info("copying from a store that cannot be written to", "snapshot", id, "error", err)
	default:
		return stats, fmt.Errorf("copying: %w", err)
	}
	// Ancestors first. They stay, for a snapshot with children is not removed.
	var ids []ID
	for at := id; !at.IsZero(); {
		if slices.Contains(ids, at) || len(ids) == maxDepth {
			return stats, fmt.Errorf("copying snapshot %s: it has more than %d ancestors", id, maxDepth)
		}
		m, err := src.readManifest(ctx, at)
		if err != nil {
			return stats, fmt.Errorf("copying snapshot %s: its ancestor: %w", id, err)
		}
		ids = append(ids, at)
		at = m.Parent
	}
	for _, at := range slices.Backward(ids) {
		if err := copyOne(ctx, dst, src, at, &stats); err != nil {
			return stats, fmt.Errorf("copying snapshot %s: %w", at, err)
		}
	}
	return stats, nil
}

// Push copies a snapshot to another store.
func (s *Store) Push(ctx context.Context, to *Store, id ID) (CopyStats, error) {
	return Copy(ctx, to, s, id)
}

// Pull copies a snapshot from another store.
func (s *Store) Pull(ctx context.Context, from *Store, id ID) (CopyStats, error) {
	return Copy(ctx, s, from, id)
}

func copyOne(ctx context.Context, dst, src *Store, id ID, stats *CopyStats) error {
	if _, ok, err := dst.have(ctx, manifestName(id)); err != nil || ok {
		return err
	}
	m, err := src.readManifest(ctx, id)
	if err != nil {
		return err
	}
	c, err := dst.Begin(ctx, *m)
	if err != nil {
		return err
	}
	defer c.Abort(ctx)
	lctx, cancel := c.lease.within(ctx)
	defer cancel()
	for _, ref := range m.Layers {
		if err := copyLayer(lctx, dst, src, ref.Digest, stats); err != nil {
			return fmt.Errorf("layer %s: %w", ref.Role, err)
		}
	}
	got, err := c.Commit(ctx)
	if err != nil {
		return err
	}
	if got != id {
		return fmt.Errorf("the copy has the ID %s", got)
	}
	stats.Snapshots++
	return nil
}

// copyLayer copies the chunks before the index, and ancestors before children,
// so that an index in the destination means that all it names was there once.
func copyLayer(ctx context.Context, dst, src *Store, d Digest, stats *CopyStats) error {
	chain, err := src.readChain(ctx, d)
	if err != nil {
		return err
	}
	digests := []Digest{d}
	for _, ix := range chain[:len(chain)-1] {
		digests = append(digests, ix.parent)
	}
	for i, ix := range slices.Backward(chain) {
		if err := copyChunks(ctx, dst, src, ix, stats); err != nil {
			return err
		}
		table := ix.encode()
		_, ok, err := dst.have(ctx, layerName(digests[i]))
		if err != nil {
			return err
		}
		if ok {
			stats.Present++
			continue
		}
		if err := dst.put(ctx, layerName(digests[i]), table); err != nil {
			return err
		}
		stats.Objects++
		stats.Bytes += int64(len(table))
	}
	return nil
}

func copyChunks(ctx context.Context, dst, src *Store, ix *index, stats *CopyStats) error {
	lengths := map[Digest]int{}
	for i := range ix.entries {
		if e := &ix.entries[i]; !e.digest.IsZero() {
			lengths[e.digest] = e.data.count() * ix.pageSize
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(dst.opts.Workers, src.opts.Workers))
	for d, n := range lengths {
		g.Go(func() error {
			name := chunkName(d)
			if _, ok, err := dst.have(ctx, name); err != nil || ok {
				if ok {
					atomic.AddInt64(&stats.Present, 1)
				}
				return err
			}
			stored, err := src.read(ctx, name, maxChunk+chunkHeader)
			if err != nil {
				return src.seen(name, err)
			}
			if _, err := decodeChunk(stored, d, n, nil); err != nil {
				return src.seen(name, err)
			}
			if err := dst.put(ctx, name, stored); err != nil {
				return err
			}
			atomic.AddInt64(&stats.Objects, 1)
			atomic.AddInt64(&stats.Bytes, int64(len(stored)))
			return nil
		})
	}
	return g.Wait()
}
