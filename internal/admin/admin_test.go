package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/internal/node/logs"
)

type backend struct{}

func (backend) Images(context.Context) ([]Image, error) { return []Image{{Ref: "a", Bytes: 1}}, nil }
func (backend) ImportImage(_ context.Context, path, ref string) (Image, error) {
	return Image{Ref: path + "|" + ref}, nil
}
func (backend) RemoveImage(_ context.Context, ref string) error {
	if ref == "broken" {
		return errors.New("disk: broken")
	}
	return fmt.Errorf("%w: %s", ErrNotFound, ref)
}
func (backend) Instances(context.Context) ([]Instance, error) { return []Instance{{ID: "1"}}, nil }
func (backend) Logs(_ context.Context, q logs.Query, emit func(logs.Line) error) error {
	for range q.Tail {
		if err := emit(logs.Line{}); err != nil {
			return err
		}
	}
	return nil
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 2 { // the second replaces the socket of the first
		l, err := Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: Handler(backend{}, slog.New(slog.DiscardHandler))}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close() })
	}
	ctx, c := t.Context(), NewClient(path)
	if got, err := c.Images(ctx); err != nil || len(got) != 1 || got[0].Ref != "a" {
		t.Errorf("Images: %+v, %v", got, err)
	}
	if got, err := c.ImportImage(ctx, "/a b", "n&m"); err != nil || got.Ref != "/a b|n&m" {
		t.Errorf("ImportImage: %+v, %v", got, err)
	}
	if err := c.RemoveImage(ctx, "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("RemoveImage: %v", err)
	}
	if err := c.RemoveImage(ctx, "broken"); err == nil || err.Error() != "disk: broken" {
		t.Errorf("RemoveImage: %v", err)
	}
	if got, err := c.Instances(ctx); err != nil || len(got) != 1 {
		t.Errorf("Instances: %+v, %v", got, err)
	}
	n := 0
	if err := c.Logs(ctx, logs.Query{Tail: 3}, func(logs.Line) error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("Logs: %d lines, %v", n, err)
	}
	if _, err := NewClient(path + "x").Images(ctx); err == nil {
		t.Error("no node: no error")
	}
}

func (backend) CreateSnapshot(_ context.Context, namespace, revision string) (Snapshot, error) {
	return Snapshot{Namespace: namespace, Revision: revision}, nil
}
func (backend) Snapshots(context.Context) ([]Snapshot, error) { return []Snapshot{{ID: "x"}}, nil }
func (backend) DescribeSnapshot(_ context.Context, id string) (SnapshotDetail, error) {
	return SnapshotDetail{}, fmt.Errorf("%w: %s", ErrNotFound, id)
}
func (backend) DiffSnapshots(_ context.Context, a, b string) ([]SnapshotDiff, error) {
	return []SnapshotDiff{{Role: a + b}}, nil
}
func (backend) VerifySnapshot(_ context.Context, id string, remove bool) (SnapshotReport, error) {
	return SnapshotReport{ID: id, Removed: remove}, nil
}
func (backend) CompactSnapshot(_ context.Context, id string) (SnapshotCompact, error) {
	return SnapshotCompact{From: id}, nil
}
func (backend) PushSnapshot(_ context.Context, id, to string) (SnapshotCopy, error) {
	return SnapshotCopy{ID: id + to}, nil
}
func (backend) PullSnapshot(context.Context, string, string) (SnapshotCopy, error) {
	return SnapshotCopy{}, fmt.Errorf("%w: store", ErrUsage)
}
func (backend) DeleteSnapshot(context.Context, string) error { return nil }
func (backend) PruneSnapshots(_ context.Context, limit int64) (SnapshotPrune, error) {
	return SnapshotPrune{Kept: limit}, nil
}

func TestSnapshotsRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: Handler(backend{}, slog.New(slog.DiscardHandler))}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	ctx, c := t.Context(), NewClient(path)
	if got, err := c.CreateSnapshot(ctx, "ns", "r"); err != nil || got.Namespace != "ns" || got.Revision != "r" {
		t.Errorf("CreateSnapshot: %+v, %v", got, err)
	}
	if got, err := c.Snapshots(ctx); err != nil || len(got) != 1 {
		t.Errorf("Snapshots: %+v, %v", got, err)
	}
	if _, err := c.DescribeSnapshot(ctx, "y"); !errors.Is(err, ErrNotFound) {
		t.Errorf("DescribeSnapshot: %v", err)
	}
	if got, err := c.DiffSnapshots(ctx, "a", "b"); err != nil || len(got) != 1 || got[0].Role != "ab" {
		t.Errorf("DiffSnapshots: %+v, %v", got, err)
	}
	if got, err := c.VerifySnapshot(ctx, "a", true); err != nil || !got.Removed || got.ID != "a" {
		t.Errorf("VerifySnapshot: %+v, %v", got, err)
	}
	if got, err := c.CompactSnapshot(ctx, "a"); err != nil || got.From != "a" {
		t.Errorf("CompactSnapshot: %+v, %v", got, err)
	}
	if got, err := c.PushSnapshot(ctx, "a", "s3://b?endpoint=http://c"); err != nil || got.ID != "as3://b?endpoint=http://c" {
		t.Errorf("PushSnapshot: %+v, %v", got, err)
	}
	if _, err := c.PullSnapshot(ctx, "a", "b"); !errors.Is(err, ErrUsage) {
		t.Errorf("PullSnapshot: %v", err)
	}
	if err := c.DeleteSnapshot(ctx, "a"); err != nil {
		t.Errorf("DeleteSnapshot: %v", err)
	}
	if got, err := c.PruneSnapshots(ctx, 7); err != nil || got.Kept != 7 {
		t.Errorf("PruneSnapshots: %+v, %v", got, err)
	}
}
