package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/snapshot"
)

func (b *backend) catalog() (*snapshots.Catalog, error) {
	if b.lower.catalog == nil {
		return nil, &explained{"snapshots are off: start skep without --snapshots=false and --snapshot-profile none", admin.ErrUsage}
	}
	return b.lower.catalog, nil
}

// find opens a snapshot by what a user calls it.
func (b *backend) find(ctx context.Context, s *snapshot.Store, id string) (snapshot.ID, error) {
	found, err := s.Resolve(ctx, id)
	return found, explainStore(err)
}

// explained is one of package admin's errors, in words of its own.
type explained struct {
	text string
	is   error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.is }

func explainStore(err error) error {
	switch {
	case errors.Is(err, snapshot.ErrNotFound):
		return &explained{fmt.Sprintf("%s (skep snapshot list shows what there is)", err), admin.ErrNotFound}
	case errors.Is(err, snapshot.ErrAmbiguous):
		return &explained{fmt.Sprintf("%s: give more digits", err), admin.ErrUsage}
	}
	return err
}

func (b *backend) Snapshots(ctx context.Context) ([]admin.Snapshot, error) {
	c, err := b.catalog()
	if err != nil {
		return nil, err
	}
	all, err := c.Store().List(ctx)
	if err != nil {
		return nil, err
	}
	copies := c.Copies()
	out := make([]admin.Snapshot, len(all))
	var g errgroup.Group
	g.SetLimit(storeCalls)
	for n, e := range all {
		out[n] = describeEntry(e, copies)
		if e.Manifest != nil {
			g.Go(func() error { out[n].Depth = depth(depthsOf(ctx, c.Store(), e.Manifest)); return nil })
		}
	}
	_ = g.Wait() // a depth that cannot be read is 0
	return out, ctx.Err()
}

// depthsOf tells how long the chain of each layer is; those that cannot be read
// are left out, which verify has more to say about.
func depthsOf(ctx context.Context, s *snapshot.Store, m *snapshot.Manifest) map[string]int {
	all := map[string]int{}
	for _, l := range m.Layers {
		if n, err := s.Depth(ctx, l.Digest); err == nil {
			all[l.Role] = n
		}
	}
	return all
}

func depth(all map[string]int) int {
	most := 0
	for _, n := range all {
		most = max(most, n)
	}
	return most
}

func describeEntry(e snapshot.Entry, copies map[snapshot.ID]int64) admin.Snapshot {
	s := admin.Snapshot{ID: e.ID.String(), LastUse: e.LastUse, Local: copies[e.ID]}
	if e.Err != nil {
		s.Error = e.Err.Error()
		return s
	}
	m := e.Manifest
	s.Namespace, s.Service, s.Revision = m.Labels[snapshots.LabelNamespace], m.Labels[snapshots.LabelService], m.Labels[snapshots.LabelRevision]
	s.Policy, s.Driver, s.Created, s.WorkingSet = m.Labels[snapshots.LabelPolicy], m.Driver.Name, m.Created, m.WorkingSet != ""
	if !m.Parent.IsZero() {
		s.Parent = m.Parent.String()
	}
	for _, l := range m.Layers {
		s.Bytes += l.Size
	}
	return s
}

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

func (b *backend) DescribeSnapshot(ctx context.Context, id string) (admin.SnapshotDetail, error) {
	c, err := b.catalog()
	if err != nil {
		return admin.SnapshotDetail{}, err
	}
	found, err := b.find(ctx, c.Store(), id)
	if err != nil {
		return admin.SnapshotDetail{}, err
	}
	m, err := c.Store().Describe(ctx, found)
	if err != nil {
		return admin.SnapshotDetail{}, explainStore(err)
	}
	return admin.SnapshotDetail{
		ID: found.String(), Manifest: m, Local: c.Copies()[found], Depths: depthsOf(ctx, c.Store(), m),
	}, ctx.Err()
}

func (b *backend) DiffSnapshots(ctx context.Context, a, other string) ([]admin.SnapshotDiff, error) {
	c, err := b.catalog()
	if err != nil {
		return nil, err
	}
	idA, err := b.find(ctx, c.Store(), a)
	if err != nil {
		return nil, err
	}
	idB, err := b.find(ctx, c.Store(), other)
	if err != nil {
		return nil, err
	}
	stats, err := c.Store().Diff(ctx, idA, idB)
	out := []admin.SnapshotDiff{}
	for _, s := range stats {
		out = append(out, admin.SnapshotDiff{
			Role: s.Role, PageSize: s.PageSize, SizeA: s.SizeA, SizeB: s.SizeB,
			Same: s.Same, Changed: s.Changed, OnlyA: s.OnlyA, OnlyB: s.OnlyB, SharedBytes: s.SharedBytes,
		})
	}
	return out, explainStore(err)
}

func (b *backend) VerifySnapshot(ctx context.Context, id string, remove bool) (admin.SnapshotReport, error) {
	c, err := b.catalog()
	if err != nil {
		return admin.SnapshotReport{}, err
	}
	found, err := b.find(ctx, c.Store(), id)
	if err != nil {
		return admin.SnapshotReport{}, err
	}
	report, err := c.Store().Verify(ctx, found)
	if err != nil {
		return admin.SnapshotReport{}, explainStore(err)
	}
	out := admin.SnapshotReport{ID: found.String(), Layers: report.Layers, Chunks: report.Chunks, Bytes: report.Bytes, Foreign: report.Foreign()}
	for _, p := range report.Problems {
		out.Problems = append(out.Problems, p.Error())
	}
	if remove && !report.OK() && !report.Foreign() {
		if err := c.Store().Quarantine(ctx, report); err != nil {
			return out, err
		}
		out.Removed = true
		err = c.Refresh(ctx)
	}
	return out, err
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
