package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// remoteStore is an object store as one would use it: S3, with retries, limits
// and a cache.
func remoteStore(t *testing.T) *Store {
	s, _ := bucketStore(t)
	return s
}

func TestPushPullDiff(t *testing.T) {
	here, there := remoteStore(t), remoteStore(t)
	third, _ := newStore(t)
	img := noise(8, 3<<20)
	base, ref := create(t, here, ID{}, img, LayerOptions{})
	changed := bytes.Clone(img)
	for _, at := range []int{0, 1 << 20, 2<<20 + 9000} {
		changed[at] ^= 1
	}
	clear(changed[8192 : 8192+DefaultPage])
	id, diff := create(t, here, base, changed, LayerOptions{Parent: ref.Digest})

	st, err := here.Push(t.Context(), there, base)
	if err != nil || st.Snapshots != 1 || st.Objects != 4 {
		t.Fatalf("pushing the base: %+v, %v", st, err)
	}
	st, err = here.Push(t.Context(), there, id)
	if err != nil || st.Snapshots != 1 || st.Objects != 4 || st.Bytes > 100_000 {
		t.Fatalf("pushing the diff: %+v, %v", st, err)
	}
	if st, err = here.Push(t.Context(), there, id); err != nil || st != (CopyStats{}) {
		t.Fatalf("pushing again: %+v, %v", st, err)
	}
	st, err = third.Pull(t.Context(), there, id)
	if err != nil || st.Snapshots != 2 {
		t.Fatalf("pulling: %+v, %v", st, err)
	}
	wantImage(t, third, diff.Digest, changed)
	if rep, err := third.Verify(t.Context(), id); err != nil || !rep.OK() || rep.Chunks != 6 || rep.Layers != 2 {
		t.Errorf("Verify: %+v, %v", rep, err)
	}
	ds, err := third.Diff(t.Context(), base, id)
	if err != nil || len(ds) != 1 {
		t.Fatalf("Diff: %+v, %v", ds, err)
	}
	want := DiffStats{Role: "memory", SizeA: 3 << 20, SizeB: 3 << 20, Same: 764, Changed: 3, OnlyA: 1,
		PageSize: DefaultPage, SharedBytes: 3 << 20, ABytes: 3 << 20, BBytes: 3<<20 + 3*DefaultPage}
	if ds[0] != want {
		t.Errorf("Diff = %+v, want %+v", ds[0], want)
	}
	_, err = third.Pull(t.Context(), there, ID{5})
	wantErr(t, err, ErrNotFound)
}

func TestPullRefusesDamage(t *testing.T) {
	src, b := newStore(t)
	dst, db := newStore(t)
	id, _ := create(t, src, ID{}, noise(1, 1<<20), LayerOptions{})
	replace(t, b, objects(t, b, chunkDir)[0], func(d []byte) []byte { d[100] ^= 1; return d })
	_, err := dst.Pull(t.Context(), src, id)
	wantErr(t, err, ErrDamaged)
	if got := append(objects(t, db, manifestDir), objects(t, db, leaseDir)...); len(got) > 0 {
		t.Errorf("a failed pull left %v", got)
	}
}

func TestResolveAndList(t *testing.T) {
	s, _ := newStore(t)
	a, _ := create(t, s, ID{}, []byte("a"), LayerOptions{})
	b, _ := create(t, s, ID{}, []byte("b"), LayerOptions{})
	for _, digits := range []string{a.Hex(), a.String(), a.Hex()[:20]} {
		if got, err := s.Resolve(t.Context(), digits); err != nil || got != a {
			t.Errorf("Resolve(%s) = %s, %v", digits, got, err)
		}
	}
	for _, digits := range []string{"", "xyz", "../..", ID{}.Hex()} {
		_, err := s.Resolve(t.Context(), digits)
		wantErr(t, err, ErrNotFound)
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 2 || all[0].ID != a || all[1].ID != b || all[0].LastUse.IsZero() {
		t.Errorf("List = %+v, %v", all, err)
	}
}

// slow counts reads of manifests, and has as many of them wait for each other
// as may go on at once.
type slow struct {
	backend.Backend
	gets, stats atomic.Int64
	together    chan struct{}
}

func (b *slow) Get(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if b.gets.Add(1) == listReads {
		close(b.together)
	}
	select {
	case <-b.together:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return b.Backend.Get(ctx, name, off, n)
}

func (b *slow) Stat(ctx context.Context, name string) (backend.Info, error) {
	b.stats.Add(1)
	return b.Backend.Stat(ctx, name)
}

// A list takes one round trip a manifest, several at the same time.
func TestListIsConcurrent(t *testing.T) {
	s, mem := newStore(t)
	for n := range uint64(2 * listReads) {
		create(t, s, ID{}, noise(n, 100), LayerOptions{})
	}
	b := &slow{Backend: mem, together: make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for want of companions
	defer cancel()
	all, err := New(b, Options{Workers: 1}).List(ctx)
	if err != nil || len(all) != 2*listReads || b.gets.Load() != 2*listReads || b.stats.Load() != 0 {
		t.Errorf("%d snapshots, %v, %d Gets, %d Stats", len(all), err, b.gets.Load(), b.stats.Load())
	}
	for n := range all[1:] {
		if all[n+1].created().Before(all[n].created()) {
			t.Error("they are not in order")
		}
	}
}

// Taking over the layers of another snapshot is how a working set that was
// recorded later gets its place.
func TestNewManifestForOldLayers(t *testing.T) {
	s, _ := newStore(t)
	old, ref := create(t, s, ID{}, noise(1, 10_000), LayerOptions{})
	m := testManifest(ID{})
	m.Layers = []LayerRef{ref}
	c, err := s.Begin(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteLayer(t.Context(), "ws", bytes.NewReader(noise(2, 5000)), 5000, LayerOptions{}); err != nil {
		t.Fatal(err)
	}
	c.SetWorkingSet("ws")
	id, err := c.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	gc(t, s, Policy{})
	if rep, err := s.Verify(t.Context(), id); err != nil || !rep.OK() {
		t.Errorf("Verify: %+v, %v", rep, err)
	}
	m.Layers[0].Size++
	if c, err = s.Begin(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(t.Context()); err == nil {
		t.Error("a layer of another size was committed")
	}
}

// readOnly refuses all changes.
type readOnly struct{ backend.Backend }

func (readOnly) Put(context.Context, string, io.Reader, int64) error {
	return errors.New("access denied")
}
func (readOnly) Delete(context.Context, string) error { return errors.New("access denied") }

// A store that can only be read from can be copied from.
func TestPullFromReadOnly(t *testing.T) {
	s, b := newStore(t)
	img := noise(1, 1<<20)
	id, ref := create(t, s, ID{}, img, LayerOptions{})
	src := New(readOnly{b}, Options{Log: slog.New(slog.DiscardHandler)})
	dst, _ := newStore(t)
	if st, err := dst.Pull(t.Context(), src, id); err != nil || st.Snapshots != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
	wantImage(t, dst, ref.Digest, img)
	_, err := dst.Pull(t.Context(), src, ID{5})
	wantErr(t, err, ErrNotFound)
	if _, err := src.Pull(t.Context(), dst, id); err != nil {
		t.Errorf("what is there already: %v", err)
	}
	other, _ := create(t, dst, ID{}, noise(2, 100), LayerOptions{})
	if _, err := src.Pull(t.Context(), dst, other); err == nil {
		t.Error("it was copied into a store that cannot be written to")
	}
}
