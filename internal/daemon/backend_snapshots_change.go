package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/snapshot"
)

func (b *backend) CreateSnapshot(ctx context.Context, namespace, revision string) (admin.Snapshot, error) {
	c, err := b.catalog()
	if err != nil {
		return admin.Snapshot{}, err
	}
	key := gateway.RevisionKey{Namespace: namespace, Name: revision}
	if err := b.fleet.Ensure(ctx, key); err != nil {
		return admin.Snapshot{}, fmt.Errorf("start an instance: %w", err)
	}
	err = errors.New("its instances ended")
	for _, i := range b.lower.node.Instances() {
		if l := i.Launch(); l.Namespace != namespace || l.Revision != revision {
			continue
		}
		var resume func()
		if resume, err = b.gateway.Pause(ctx, key, i.ID(), 0); err != nil {
			continue // it goes
		}
		if err = i.Save(ctx, true); !errors.Is(err, node.ErrEndedBySnapshot) {
			resume() // else no request shall meet it
		}
		if err == nil {
			return b.stored(ctx, c, i)
		}
		break
	}
	return admin.Snapshot{}, fmt.Errorf("snapshot of %s/%s: %w", namespace, revision, err)
}

// stored waits until the snapshot of an instance is in the store.
func (b *backend) stored(ctx context.Context, c *snapshots.Catalog, i *node.Instance) (admin.Snapshot, error) {
	id, err := c.Stored(ctx, i.SnapshotKey())
	if err != nil {
		return admin.Snapshot{}, err
	}
	m, err := c.Store().Describe(ctx, id)
	if err != nil {
		return admin.Snapshot{}, explainStore(err)
	}
	s := describeEntry(snapshot.Entry{ID: id, Manifest: m}, c.Copies())
	s.Depth = depth(depthsOf(ctx, c.Store(), m))
	return s, nil
}

func (b *backend) CompactSnapshot(ctx context.Context, id string) (admin.SnapshotCompact, error) {
	c, err := b.catalog()
	if err != nil {
		return admin.SnapshotCompact{}, err
	}
	found, err := b.find(ctx, c.Store(), id)
	if err != nil {
		return admin.SnapshotCompact{}, err
	}
	m, err := c.Store().Describe(ctx, found)
	if err != nil {
		return admin.SnapshotCompact{}, explainStore(err)
	}
	out := admin.SnapshotCompact{From: found.String(), Depth: depth(depthsOf(ctx, c.Store(), m)), Removed: []string{}}
	made, err := c.Compact(ctx, found)
	if err != nil {
		return out, explainStore(err)
	}
	out.ID = made.ID.String()
	for _, id := range made.Removed {
		out.Removed = append(out.Removed, id.String())
	}
	return out, c.Refresh(ctx)
}

// copySnapshot copies a snapshot between the node's store and another one.
func (b *backend) copySnapshot(ctx context.Context, id, at string, pull bool) (admin.SnapshotCopy, error) {
	c, err := b.catalog()
	if err != nil {
		return admin.SnapshotCopy{}, err
	}
	if !strings.Contains(at, "://") && !filepath.IsAbs(at) {
		return admin.SnapshotCopy{}, &explained{fmt.Sprintf("store %q is neither an absolute path nor s3://BUCKET/PREFIX?endpoint=URL", at), admin.ErrUsage}
	}
	if err := checkStore(at); err != nil {
		return admin.SnapshotCopy{}, &explained{err.Error(), admin.ErrUsage}
	}
	made, err := prepareFolder(at, pull)
	if err != nil {
		return admin.SnapshotCopy{}, &explained{err.Error(), admin.ErrUsage}
	}
	from, to := c.Store(), (*snapshot.Store)(nil)
	if pull {
		from, err = openSource(ctx, at, b.cfg.Log)
		to = c.Store()
	} else {
		to, err = openStore(ctx, at, "", b.cfg.Log)
	}
	if err != nil {
		return admin.SnapshotCopy{}, err
	}
	found, err := b.find(ctx, from, id)
	if err != nil {
		return admin.SnapshotCopy{}, err
	}
	if pull {
		c.Spare(found)
	}
	stats, err := snapshot.Copy(ctx, to, from, found)
	if err == nil && pull {
		err = c.Refresh(ctx)
	}
	return admin.SnapshotCopy{
		ID: found.String(), Snapshots: stats.Snapshots, Objects: stats.Objects, Bytes: stats.Bytes, Present: stats.Present, Made: made,
	}, explainStore(err)
}

func (b *backend) PushSnapshot(ctx context.Context, id, to string) (admin.SnapshotCopy, error) {
	return b.copySnapshot(ctx, id, to, false)
}

func (b *backend) PullSnapshot(ctx context.Context, id, from string) (admin.SnapshotCopy, error) {
	return b.copySnapshot(ctx, id, from, true)
}

func (b *backend) DeleteSnapshot(ctx context.Context, id string) error {
	c, err := b.catalog()
	if err != nil {
		return err
	}
	found, err := b.find(ctx, c.Store(), id)
	if err != nil {
		return err
	}
	if err := c.Store().Delete(ctx, found); err != nil {
		return explainStore(err)
	}
	return c.Refresh(ctx)
}

func (b *backend) PruneSnapshots(ctx context.Context, limit int64) (admin.SnapshotPrune, error) {
	c, err := b.catalog()
	if err != nil {
		return admin.SnapshotPrune{}, err
	}
	var stats snapshot.GCStats
	if limit < 0 {
		stats, err = c.Collect(ctx)
	} else if stats, err = c.Store().GC(ctx, snapshot.Policy{MaxBytes: max(1, limit)}); err == nil {
		err = c.Refresh(ctx)
	}
	out := admin.SnapshotPrune{Evicted: []string{}, Objects: stats.Freed, Bytes: stats.Bytes, Kept: stats.Kept}
	for _, id := range stats.Evicted {
		out.Evicted = append(out.Evicted, id.String())
	}
	for _, id := range stats.Foreign {
		out.Foreign = append(out.Foreign, id.String())
	}
	return out, err
}
