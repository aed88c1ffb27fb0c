package snapshot

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
)

func TestLayerSizes(t *testing.T) {
	s, _ := newStore(t)
	r := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 1, 4095, 4096, 4097, 1 << 20, 1<<20 + 1, 3<<20 - 5} {
		img := randomImage(r, size)
		_, ref := create(t, s, ID{}, img, LayerOptions{})
		wantImage(t, s, ref.Digest, img)
		f := tempFile(t)
		l, err := s.OpenLayer(t.Context(), ref.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Materialize(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, img) {
			t.Errorf("image of %d bytes materialized differently: %v", size, err)
		}
		if n, err := l.ReadAt(make([]byte, 10), int64(size)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("reading at the end: %d, %v", n, err)
		}
		l.Close()
	}
}

// A chain of diffs reads, extends and flattens like an image that was written
// to directly, whichever way each diff was taken.
func TestChainEqualsModel(t *testing.T) {
	s, _ := newStore(t)
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 7))
		size := DefaultPage * (1 + r.IntN(900))
		model := randomImage(r, size)
		id, ref := create(t, s, ID{}, model, LayerOptions{})
		for depth := 2; depth <= 5; depth++ {
			var dirty []Extent
			for range r.IntN(60) {
				page := r.IntN(len(model) / DefaultPage)
				p := model[page*DefaultPage:][:DefaultPage]
				if r.IntN(4) > 0 { // else dirty but unchanged
					fillPage(r, p)
				}
				dirty = append(dirty, Extent{int64(page*DefaultPage + r.IntN(100)), 1})
			}
			o := LayerOptions{Parent: ref.Digest}
			switch {
			case r.IntN(3) == 0 && depth > 2: // grows or shrinks
				model = append(model, make([]byte, DefaultPage*r.IntN(300))...)
				model = model[:len(model)-DefaultPage*r.IntN(len(model)/DefaultPage)]
			case r.IntN(2) == 0:
				o.Extents, o.Inherit = append(dirty, Extent{}), true
			}
			id, ref = create(t, s, id, model, o)
			checkModel(t, s, r, ref.Digest, model, depth)
		}
		flat, err := s.Compact(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Describe(t.Context(), flat)
		if err != nil {
			t.Fatal(err)
		}
		checkModel(t, s, r, m.Layers[0].Digest, model, 1)
		if again, err := s.Compact(t.Context(), flat); err != nil || again != flat || !m.Parent.IsZero() {
			t.Errorf("compacting what is: %s, %v", again, err)
		}
		if n, err := s.Depth(t.Context(), ref.Digest); err != nil || n != 5 {
			t.Errorf("depth %d, %v", n, err)
		}
		st, err := s.Diff(t.Context(), id, flat)
		if err != nil || len(st) != 1 || st[0].Changed+st[0].OnlyA+st[0].OnlyB != 0 {
			t.Errorf("compacting changed something: %+v, %v", st, err)
		}
		if rep, err := s.Verify(t.Context(), id); err != nil || !rep.OK() {
			t.Errorf("Verify: %+v, %v", rep, err)
		}
	}
}

func checkModel(t *testing.T, s *Store, r *rand.Rand, d Digest, model []byte, depth int) {
	t.Helper()
	wantImage(t, s, d, model)
	l, err := s.OpenLayer(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Depth() != depth {
		t.Errorf("depth %d, want %d", l.Depth(), depth)
	}
	for range 20 {
		off := r.IntN(len(model))
		p := make([]byte, 1+r.IntN(len(model)-off))
		if n, err := l.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p[:n], model[off:off+n]) {
			t.Fatalf("ReadAt(%d, %d) differs: %v", len(p), off, err)
		}
	}
	rest := bytes.Clone(model)
	end := int64(-1)
	for _, e := range l.Extents() {
		if e.Offset <= end || e.Length <= 0 {
			t.Fatalf("extents are not in order and merged at %+v", e)
		}
		end = e.End()
		clear(rest[e.Offset:e.End()])
	}
	if len(bytes.Trim(rest, "\x00")) > 0 {
		t.Fatal("there is content outside the extents")
	}
}

func TestDiffHoldsOnlyWhatChanged(t *testing.T) {
	s, b := newStore(t)
	img := bytes.Repeat([]byte("page of text, "), 300_000)[:4<<20]
	id, base := create(t, s, ID{}, img, LayerOptions{})
	before := len(objects(t, b, chunkDir))
	copy(img[2<<20+100:], "changed")
	clear(img[3<<20 : 3<<20+DefaultPage])
	_, diff := create(t, s, id, img, LayerOptions{Parent: base.Digest})
	l, err := s.OpenLayer(t.Context(), diff.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := []Extent{{2 << 20, DefaultPage}, {3 << 20, DefaultPage}}
	if got := l.Changed(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("Changed = %v, want %v", got, want)
	}
	if got := len(objects(t, b, chunkDir)); got != before+1 {
		t.Errorf("%d new chunks, want 1", got-before)
	}
	wantImage(t, s, diff.Digest, img)
}

func TestSparseFiles(t *testing.T) {
	s, b := newStore(t)
	f := tempFile(t)
	const size = 64 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("in the middle"), size/2); err != nil {
		t.Fatal(err)
	}
	c, err := s.Begin(t.Context(), testManifest(ID{}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort(t.Context())
	ref, err := c.WriteLayer(t.Context(), "memory", f, size, LayerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(objects(t, b, chunkDir)); n != 1 {
		t.Errorf("%d chunks, want 1", n)
	}
	l, err := s.OpenLayer(t.Context(), ref.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out := tempFile(t)
	if err := l.Materialize(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	st, err := out.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || st.Size() != size || sys.Blocks*512 > 1<<20 {
		t.Errorf("materialized: %d bytes in %d blocks", st.Size(), sys.Blocks)
	}
	if _, err := c.WriteLayer(t.Context(), "memory", f, size, LayerOptions{}); err == nil {
		t.Error("a role was given twice")
	}
	// The same holes, now meaning "as the parent".
	dirty := tempFile(t)
	if err := dirty.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := dirty.WriteAt(bytes.Repeat([]byte{7}, DefaultPage), 0); err != nil {
		t.Fatal(err)
	}
	diff, err := c.WriteLayer(t.Context(), "diff", dirty, size, LayerOptions{Parent: ref.Digest, Inherit: true})
	if err != nil {
		t.Fatal(err)
	}
	got, err := readLayer(t, s, diff.Digest)
	if err != nil || got[0] != 7 || string(got[size/2:size/2+13]) != "in the middle" {
		t.Errorf("diff over holes reads wrong: %v", err)
	}
}

func TestWriteLayerRefuses(t *testing.T) {
	s, _ := newStore(t)
	_, base := create(t, s, ID{}, make([]byte, 5000), LayerOptions{})
	for name, c := range map[string]struct {
		size int64
		o    LayerOptions
	}{
		"nothing to inherit": {100, LayerOptions{Inherit: true}},
		"no such parent":     {100, LayerOptions{Parent: Digest{1}}},
		"page size":          {100, LayerOptions{PageSize: 1000}},
		"other pages":        {100, LayerOptions{Parent: base.Digest, PageSize: 8192}},
		"chunk pages":        {100, LayerOptions{ChunkPages: 9}},
		"size":               {-1, LayerOptions{}},
		"short source":       {200_000, LayerOptions{}},
		"inherited part":     {6000, LayerOptions{Parent: base.Digest, Inherit: true}},
		"extent outside":     {100, LayerOptions{Extents: []Extent{{-5, 10}}}},
	} {
		t.Run(name, func(t *testing.T) {
			cr, err := s.Begin(t.Context(), testManifest(ID{}))
			if err != nil {
				t.Fatal(err)
			}
			defer cr.Abort(t.Context())
			if _, err := cr.WriteLayer(t.Context(), "memory", bytes.NewReader(make([]byte, 100_000)), c.size, c.o); err == nil {
				t.Error("it was accepted")
			}
			if _, err := cr.Commit(t.Context()); err == nil {
				t.Error("a snapshot without layers was committed")
			}
		})
	}
}

func TestReadsEndWithClose(t *testing.T) {
	s, _ := newStore(t)
	_, ref := create(t, s, ID{}, bytes.Repeat([]byte{1}, 10_000), LayerOptions{})
	l, err := s.OpenLayer(t.Context(), ref.Digest)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := l.ReadAt(make([]byte, 10), 0); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("reading a closed layer: %v", err)
	}
}
