package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/snapshot"
	objects "github.com/skep-dev/skep/internal/snapshot/backend"
	"github.com/skep-dev/skep/internal/snapshot/backend/local"
)

// storeLab is a node's socket with a real store behind it.
type storeLab struct {
	*admin.Client
	t     *testing.T
	store *snapshot.Store
}

func openLab(t *testing.T, at string) *storeLab {
	t.Helper()
	dir, err := os.MkdirTemp("", "skep-") // short, for the socket's sake
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	log := slog.New(slog.DiscardHandler)
	store, err := openStore(t.Context(), at, filepath.Join(dir, "cache"), log)
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(t.Context(), filepath.Join(dir, "node.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	catalog, err := snapshots.Open(t.Context(), snapshots.Config{Dir: filepath.Join(dir, "local"), Store: store, Journal: j, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := catalog.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	l, err := admin.Listen(t.Context(), filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: admin.Handler(&backend{lower: &lower{catalog: catalog}, cfg: Config{Log: log}}, log)}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return &storeLab{admin.NewClient(filepath.Join(dir, "s")), t, store}
}

// make stores a snapshot, a difference if it has a parent.
func (l *storeLab) make(img []byte, parent snapshot.ID) snapshot.ID {
	l.t.Helper()
	ctx := l.t.Context()
	m := snapshot.Manifest{
		Parent: parent, Labels: map[string]string{snapshots.LabelKey: "k", snapshots.LabelRevision: "r"},
		Requirements: snapshot.Requirements{
			Driver: snapshot.Component{Name: "d", Version: "1"}, CPU: snapshot.CPU{Arch: "amd64", Model: "m"}, MemoryBytes: 1 << 20, VCPUs: 1,
		},
	}
	o := snapshot.LayerOptions{}
	if !parent.IsZero() {
		p, err := l.store.Describe(ctx, parent)
		if err != nil {
			l.t.Fatal(err)
		}
		o.Parent = p.Layers[0].Digest
	}
	c, err := l.store.Begin(ctx, m)
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Abort(ctx)
	if _, err := c.WriteLayer(ctx, "memory", bytes.NewReader(img), int64(len(img)), o); err != nil {
		l.t.Fatal(err)
	}
	id, err := c.Commit(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// verify is what the command does with --all.
func (l *storeLab) verify(remove bool) map[string]admin.SnapshotReport {
	l.t.Helper()
	all, err := l.Snapshots(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	out := map[string]admin.SnapshotReport{}
	for _, s := range all {
		if out[s.ID], err = l.VerifySnapshot(l.t.Context(), s.ID, remove); err != nil {
			l.t.Fatal(err)
		}
	}
	return out
}

// filled is an image that does not compress, so that each of its bits counts.
func filled(seed byte) []byte {
	img := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(img) // never fails
	return img
}

// flipIn changes a byte of the object that holds an image's one chunk.
func flipIn(t *testing.T, bucket *s3mem.Backend, img []byte) {
	t.Helper()
	name := "chunks/" + snapshot.DigestOf(img).Hex()
	o, err := bucket.GetObject("store", name, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(o.Contents)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if _, err := bucket.PutObject("store", name, map[string]string{}, bytes.NewReader(data), int64(len(data)), nil); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyStore: damage in a bucket is found behind the node's cache, told,
// and removed where that was asked for; another version's is not.
func TestVerifyStore(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "k")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	bucket := s3mem.New()
	if err := bucket.CreateBucket("store"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(bucket).Server())
	t.Cleanup(srv.Close)
	l := openLab(t, "s3://store?region=r&endpoint="+srv.URL)
	whole, bad := l.make(filled(1), snapshot.ID{}).String(), l.make(filled(2), snapshot.ID{}).String()
	later := []byte(`{"version": 7}`)
	foreign := snapshot.DigestOf(later)
	if _, err := bucket.PutObject("store", "manifests/"+foreign.Hex(), map[string]string{"Last-Modified": time.Now().UTC().Format(http.TimeFormat)}, bytes.NewReader(later), int64(len(later)), nil); err != nil {
		t.Fatal(err)
	}
	for id, r := range l.verify(false) {
		if id != foreign.String() && len(r.Problems) > 0 {
			t.Errorf("before: %+v", r)
		}
	}
	flipIn(t, bucket, filled(2))
	for _, remove := range []bool{false, true} {
		all := l.verify(remove)
		if r := all[whole]; len(r.Problems) > 0 || r.Removed {
			t.Errorf("the whole one: %+v", r)
		}
		if r := all[bad]; len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "corrupt") || r.Removed != remove || r.Foreign {
			t.Errorf("remove %t: the damaged one: %+v", remove, r)
		}
		if r := all[foreign.String()]; len(r.Problems) != 1 || !r.Foreign || r.Removed {
			t.Errorf("remove %t: another version's: %+v", remove, r)
		}
	}
	if all := l.verify(true); len(all) != 2 || len(all[whole].Problems) > 0 {
		t.Errorf("in the end: %+v", all)
	}
	prune, err := l.PruneSnapshots(t.Context(), 1<<30)
	if err != nil || len(prune.Foreign) != 1 || prune.Objects != 0 {
		t.Errorf("prune beside another version's: %+v, %v", prune, err)
	}
	if err := l.DeleteSnapshot(t.Context(), foreign.Hex()[:12]); err != nil {
		t.Error(err)
	}
	prune, err = l.PruneSnapshots(t.Context(), 1<<30)
	if err != nil || len(prune.Foreign) != 0 || prune.Objects == 0 {
		t.Errorf("prune without: %+v, %v", prune, err)
	}
}

// TestCompactSnapshot: what a difference is made of can be seen, and made one.
func TestCompactSnapshot(t *testing.T) {
	l := openLab(t, t.TempDir())
	base := l.make(filled(1), snapshot.ID{})
	changed := append(filled(1)[:1<<19], filled(2)[:1<<19]...)
	diff := l.make(changed, base)
	list, err := l.Snapshots(t.Context())
	if err != nil || len(list) != 2 || list[0].Depth != 1 || list[1].Depth != 2 || list[1].Parent != base.String() || list[0].Parent != "" {
		t.Fatalf("list: %+v, %v", list, err)
	}
	d, err := l.DescribeSnapshot(t.Context(), diff.Hex()[:10])
	if err != nil || d.Manifest.Parent != base || d.Depths["memory"] != 2 {
		t.Errorf("describe: %+v, %v", d, err)
	}
	r, err := l.CompactSnapshot(t.Context(), diff.Hex()[:10])
	if err != nil || r.From != diff.String() || r.Depth != 2 || len(r.Removed) != 2 {
		t.Fatalf("compact: %+v, %v", r, err)
	}
	if list, err = l.Snapshots(t.Context()); err != nil || len(list) != 1 || list[0].ID != r.ID || list[0].Depth != 1 || list[0].Parent != "" {
		t.Errorf("list: %+v, %v", list, err)
	}
	if again, err := l.CompactSnapshot(t.Context(), r.ID); err != nil || again.ID != r.ID || len(again.Removed) != 0 {
		t.Errorf("compact again: %+v, %v", again, err)
	}
	if _, err := l.CompactSnapshot(t.Context(), diff.Hex()); !errors.Is(err, admin.ErrNotFound) {
		t.Errorf("compact what is gone: %v", err)
	}
}

// TestCopyFolders: a mistyped folder is told and not made.
func TestCopyFolders(t *testing.T) {
	l := openLab(t, t.TempDir())
	id := l.make(filled(1), snapshot.ID{})
	dir := t.TempDir()
	at := filepath.Join(dir, "copies")
	for _, bad := range []string{filepath.Join(dir, "no", "such"), "file://" + filepath.Join(dir, "no", "such")} {
		if _, err := l.PushSnapshot(t.Context(), id.String(), bad); !errors.Is(err, admin.ErrUsage) || !strings.Contains(err.Error(), bad[strings.LastIndex(bad, "//")+1:]) {
			t.Errorf("push to %s: %v", bad, err)
		}
	}
	if _, err := l.PullSnapshot(t.Context(), id.String(), at); !errors.Is(err, admin.ErrUsage) || !strings.Contains(err.Error(), at) {
		t.Errorf("pull from nowhere: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it made %v, %v", left, err)
	}
	if r, err := l.PushSnapshot(t.Context(), id.String(), at); err != nil || !r.Made || r.Snapshots != 1 {
		t.Fatalf("push: %+v, %v", r, err)
	}
	if r, err := l.PushSnapshot(t.Context(), id.String(), at); err != nil || r.Made {
		t.Fatalf("push again: %+v, %v", r, err)
	}
	if _, err := l.PullSnapshot(t.Context(), "abcd", at); !errors.Is(err, admin.ErrNotFound) {
		t.Errorf("pull what is not there: %v", err)
	}
	other := openLab(t, t.TempDir())
	if r, err := other.PullSnapshot(t.Context(), id.String(), at); err != nil || r.Snapshots != 1 {
		t.Errorf("pull: %+v, %v", r, err)
	}
	b, err := local.OpenReadable(at)
	if err != nil {
		t.Fatal(err)
	}
	_ = b.List(t.Context(), "leases/", func(i objects.Info) error { t.Errorf("left: %s", i.Name); return nil })
}
