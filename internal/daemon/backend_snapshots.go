package daemon

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/admin"
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
