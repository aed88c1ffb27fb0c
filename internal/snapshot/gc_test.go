package snapshot

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func noise(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 99))
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestGCFreesOnlyWhatNobodyHolds(t *testing.T) {
	s, b := newStore(t)
	shared, own := noise(1, 1<<20), noise(2, 1<<20)
	a, _ := create(t, s, ID{}, append(bytes.Clone(shared), own...), LayerOptions{})
	_, kept := create(t, s, ID{}, shared, LayerOptions{})
	if st := gc(t, s, Policy{}); st.Freed != 0 {
		t.Errorf("GC freed %d objects of living snapshots", st.Freed)
	}
	if err := s.Delete(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if st := gc(t, s, Policy{}); st.Freed != 2 || st.Bytes < 1<<20 {
		t.Errorf("GC freed %d objects with %d bytes, want a chunk and a layer", st.Freed, st.Bytes)
	}
	wantImage(t, s, kept.Digest, shared)
	if left := objects(t, b, leaseDir); len(left) != 0 {
		t.Errorf("leases are left: %v", left)
	}
	wantErr(t, s.Delete(t.Context(), a), ErrNotFound)
}

func TestGCEvictsLeastRecentlyUsed(t *testing.T) {
	now := time.Now()
	s, b := newStore(t)
	s.opts.Now = func() time.Time { return now }
	var ids []ID
	for i := range uint64(4) {
		id, _ := create(t, s, ID{}, noise(i, 1<<20), LayerOptions{})
		ids = append(ids, id)
		now = now.Add(2 * touchEvery)
	}
	if err := s.Touch(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	st := gc(t, s, Policy{MaxBytes: 5 << 19, Keep: func(id ID, _ *Manifest) bool { return id == ids[1] }})
	if len(st.Evicted) != 2 || st.Evicted[0] != ids[2] || st.Evicted[1] != ids[3] || st.Over != 0 {
		t.Errorf("evicted %v (over by %d), want the third and fourth of %v", st.Evicted, st.Over, ids)
	}
	if n := len(objects(t, b, chunkDir)); n != 2 {
		t.Errorf("%d chunks are left, want 2", n)
	}
	if n := len(objects(t, b, useDir)); n != 2 {
		t.Errorf("%d uses are left, want 2", n)
	}
	pin, err := s.Pin(t.Context(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if st := gc(t, s, Policy{MaxBytes: 1, Keep: func(id ID, _ *Manifest) bool { return id == ids[1] }}); len(st.Evicted) != 0 || st.Over == 0 {
		t.Errorf("GC took what is pinned or kept: %+v", st)
	}
	wantErr(t, s.Delete(t.Context(), ids[0]), ErrInUse)
	pin.Release(t.Context())
	if st := gc(t, s, Policy{MaxBytes: 1}); len(st.Evicted) != 2 {
		t.Errorf("evicted %v, want the last two", st.Evicted)
	}
	for _, dir := range []string{chunkDir, layerDir, manifestDir, leaseDir, useDir} {
		if left := objects(t, b, dir); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

func TestChildrenHoldTheirParents(t *testing.T) {
	s, _ := newStore(t)
	img := noise(5, 2<<20)
	base, ref := create(t, s, ID{}, img, LayerOptions{})
	img[0] ^= 1
	child, diff := create(t, s, base, img, LayerOptions{Parent: ref.Digest})
	wantErr(t, s.Delete(t.Context(), base), ErrInUse)
	st := gc(t, s, Policy{MaxBytes: 1, Keep: func(id ID, _ *Manifest) bool { return id == child }})
	if len(st.Evicted) != 0 {
		t.Error("the parent of a snapshot that is kept was evicted")
	}
	wantImage(t, s, diff.Digest, img)
	if st := gc(t, s, Policy{MaxBytes: 1}); len(st.Evicted) != 2 || st.Evicted[0] != child {
		t.Errorf("evicted %v, want child and then parent", st.Evicted)
	}
	_, err := s.Begin(t.Context(), testManifest(base))
	wantErr(t, err, ErrNotFound)
}

func TestLeases(t *testing.T) {
	now := time.Now()
	s, b := newStore(t)
	s.opts.Now = func() time.Time { return now }
	c, err := s.Begin(t.Context(), testManifest(ID{}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteLayer(t.Context(), "memory", bytes.NewReader(noise(1, 9000)), 9000, LayerOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = s.GC(t.Context(), Policy{Wait: 20 * time.Millisecond})
	wantErr(t, err, ErrBusy)
	now = now.Add(s.opts.LeaseTTL) // as if its process had died
	if st := gc(t, s, Policy{}); st.Freed != 2 {
		t.Errorf("GC freed %d objects, want 2", st.Freed)
	}
	_, err = c.Commit(t.Context())
	if err == nil {
		t.Error("a creation was committed whose lease had run out")
	}
	if n := len(objects(t, b, manifestDir)); n != 0 {
		t.Error("and left a manifest")
	}
	c.Abort(t.Context())
	l, err := s.acquire(t.Context(), leaseSweep, ID{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.release(t.Context())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = s.Begin(ctx, testManifest(ID{}))
	wantErr(t, err, ErrBusy)
	if _, err := s.Pin(t.Context(), ID{1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a sweep kept a reader waiting: %v", err)
	}
}

// Creating the same and other content while GC runs again and again, with a
// limit that evicts: what was committed and is still listed is whole.
func TestConcurrentCreationAndGC(t *testing.T) {
	s, b := newStore(t)
	same := noise(1, 1<<20)
	var creators sync.WaitGroup
	for w := range uint64(4) {
		creators.Go(func() {
			for i := range uint64(6) {
				img := same
				if i%2 == 1 {
					img = append(bytes.Clone(same), noise(100*w+i, 200_000)...)
				}
				id, _ := create(t, s, ID{}, img, LayerOptions{})
				if _, err := s.GC(t.Context(), Policy{MaxBytes: 3 << 20}); err != nil {
					t.Errorf("GC: %v", err)
				}
				rep, err := s.Verify(t.Context(), id)
				if err == nil && !rep.OK() {
					// Only evicting while it was verified may explain that.
					if _, err := s.Describe(t.Context(), id); !errors.Is(err, ErrNotFound) {
						t.Errorf("snapshot is damaged: %v", rep.Problems)
					}
				} else if err != nil && !errors.Is(err, ErrNotFound) {
					t.Errorf("Verify: %v", err)
				}
			}
		})
	}
	creators.Wait()
	all, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if rep, err := s.Verify(t.Context(), e.ID); err != nil || !rep.OK() {
			t.Errorf("%+v, %v", rep, err)
		}
	}
	gc(t, s, Policy{MaxBytes: 1})
	if left := objects(t, b, chunkDir); len(left) != 0 {
		t.Errorf("%d chunks are left", len(left))
	}
}
