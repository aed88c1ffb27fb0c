package pager

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// image is a Source where every page but each third is filled with its number.
type image struct{ pages, pageSize int64 }

func (m image) Size() int64            { return m.pages * m.pageSize }
func (m image) Zero(off, n int64) bool { return false }
func (m image) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		page := (off + int64(i)) / m.pageSize
		p[i] = 0
		if page%3 != 2 {
			p[i] = byte(page + 1)
		}
	}
	return len(p), nil
}

func writeSet(t testing.TB, pages []uint64) (string, Recording) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ws")
	rec := Recording{PageSize: PageSize, Pages: pages}
	if err := WriteWorkingSet(context.Background(), path, rec, image{1000, PageSize}); err != nil {
		t.Fatal(err)
	}
	return path, rec
}

func TestWorkingSetFile(t *testing.T) {
	t.Parallel()
	var many []uint64
	for i := range uint64(900) {
		many = append(many, 999-i)
	}
	for name, pages := range map[string][]uint64{
		"empty": nil, "one": {7}, "zero": {2}, "mixed": {5, 6, 7, 3, 4, 100, 0, 1, 2}, "many chunks": many,
	} {
		path, rec := writeSet(t, pages)
		ws, err := OpenWorkingSet(path, false)
		if err != nil {
			t.Fatal(name, err)
		}
		if got := ws.Recording(); got.PageSize != rec.PageSize || !slices.Equal(got.Pages, rec.Pages) {
			t.Errorf("%s: pages %v", name, got.Pages)
		}
		if err := errors.Join(ws.Verify(context.Background()), ws.Advise()); err != nil {
			t.Error(name, err)
		}
		var want []byte
		page := make([]byte, PageSize)
		for _, p := range pages {
			if _, _ = (image{1000, PageSize}).ReadAt(page, int64(p)*PageSize); !allZero(page) {
				want = append(want, page...)
			}
		}
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := file[ws.index.dataOffset:]; !bytes.Equal(got, want) {
			t.Errorf("%s: content of %d bytes differs, want %d", name, len(got), len(want))
		}
		if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
			t.Errorf("%s: files left: %v", name, entries)
		}
		if err := ws.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWriteWorkingSetRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, tc := range map[string]struct {
		ctx context.Context
		rec Recording
	}{
		"outside":   {context.Background(), Recording{PageSize, []uint64{1000}}},
		"twice":     {context.Background(), Recording{PageSize, []uint64{1, 5, 1}}},
		"page size": {context.Background(), Recording{1234, nil}},
		"canceled":  {canceled, Recording{PageSize, []uint64{1}}},
	} {
		if err := WriteWorkingSet(tc.ctx, filepath.Join(dir, "ws"), tc.rec, image{1000, PageSize}); err == nil {
			t.Error(name, "was accepted")
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("files left: %v", entries)
	}
}

// Every flipped byte and every truncation is noticed, at the latest by Verify.
func TestWorkingSetDamage(t *testing.T) {
	t.Parallel()
	path, _ := writeSet(t, []uint64{5, 6, 7, 3, 4, 100, 2})
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(b []byte) error {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		ws, err := OpenWorkingSet(path, false)
		if err != nil {
			return err
		}
		defer ws.Close()
		return ws.Verify(context.Background())
	}
	x, err := decodeIndex(good[:wsHeader+3*wsRunSize+4], int64(len(good)))
	if err == nil {
		t.Fatalf("wrong length accepted: %+v", x)
	}
	length, err := indexLength(good, int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(good); i += 1 + i/300*97 {
		if int64(i) >= length && i < wsAlign {
			continue // the gap before the data means nothing
		}
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if err := check(bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	for _, n := range []int{0, 1, 127, 128, 200, 4096, len(good) - 1} {
		if err := check(good[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if err := check(append(bytes.Clone(good), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("longer: %v", err)
	}
}

func FuzzWorkingSet(f *testing.F) {
	for _, pages := range [][]uint64{nil, {7}, {5, 6, 7, 3, 4, 100}} {
		path, _ := writeSet(f, pages)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		length, err := indexLength(b, int64(len(b)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:length], int64(len(b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		// The checksum would keep the fuzzer out: repair it.
		b = bytes.Clone(b)
		if len(b) >= wsHeader {
			sum := indexSum(b)
			copy(b[wsSummed:], sum[:])
			clear(b[wsSumEnd:wsHeader])
		}
		x, err := decodeIndex(b, size)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			return
		}
		if again := x.encode(); !bytes.Equal(again, b) {
			t.Errorf("%+v is encoded differently", x)
		}
	})
}

func TestMerge(t *testing.T) {
	t.Parallel()
	rec := func(pages ...uint64) Recording { return Recording{PageSize, pages} }
	a, b, c := rec(5, 1, 9), rec(1, 7, 5), rec(2, 5, 1)
	if u, err := Union(a, b, c); err != nil || !slices.Equal(u.Pages, []uint64{5, 1, 9, 7, 2}) {
		t.Error(u, err)
	}
	if i, err := Intersection(a, b, c); err != nil || !slices.Equal(i.Pages, []uint64{5, 1}) {
		t.Error(i, err)
	}
	if i, err := Intersection(a); err != nil || !slices.Equal(i.Pages, a.Pages) {
		t.Error(i, err)
	}
	for _, merge := range []func(...Recording) (Recording, error){Union, Intersection} {
		if _, err := merge(); err == nil {
			t.Error("nothing was merged")
		}
		if _, err := merge(a, Recording{HugePageSize, nil}); err == nil {
			t.Error("page sizes were mixed")
		}
	}
}

// A set is walked in order, with right content, and may be walked again. It has
// more chunks than are read ahead.
func TestWalk(t *testing.T) {
	t.Parallel()
	from := image{3000, PageSize}
	rec := Recording{PageSize: PageSize}
	for i := range uint64(from.pages) {
		rec.Pages = append(rec.Pages, i^1)
	}
	path := filepath.Join(t.TempDir(), "ws")
	if err := WriteWorkingSet(t.Context(), path, rec, from); err != nil {
		t.Fatal(err)
	}
	for _, direct := range []bool{false, true} {
		ws, err := OpenWorkingSet(path, direct)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		if n := len(ws.index.sums); n <= 2*walkAhead {
			t.Fatalf("%d chunks are too few", n)
		}
		for range 2 {
			var pages []uint64
			want := make([]byte, PageSize)
			err := ws.Walk(t.Context(), func(run Run, data []byte) error {
				for i := range uint64(run.Count) {
					page := run.Page + i
					pages = append(pages, page)
					_, _ = from.ReadAt(want, int64(page)*PageSize)
					if run.Zero && !allZero(want) || !run.Zero && !bytes.Equal(data[i*PageSize:][:PageSize], want) {
						t.Errorf("direct %t: page %d in run %+v is wrong", direct, page, run)
					}
				}
				return nil
			})
			if err != nil || !slices.Equal(pages, rec.Pages) {
				t.Errorf("direct %t: %d pages, or out of order: %v", direct, len(pages), err)
			}
		}
	}
}

func TestDrift(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		d     Drift
		ratio float64
	}{{Drift{}, 0}, {Drift{Missing: 5}, 1}, {Drift{Missing: 5, Size: 100}, 0.05}, {Drift{Size: 100}, 0}} {
		if r := tc.d.Ratio(); r != tc.ratio || tc.d.Drifted(r) || r > 0 && !tc.d.Drifted(r/2) {
			t.Errorf("%+v: %v", tc.d, r)
		}
	}
	if d := (Drift{Size: 100, Failed: ErrDamaged}); !d.Drifted(0.3) {
		t.Errorf("%+v is no drift", d)
	}
}

func TestMemoryBitmaps(t *testing.T) {
	t.Parallel()
	for _, r := range [][2]uint64{{0, 300}, {3, 5}, {60, 70}, {64, 128}, {1, 299}, {299, 300}} {
		var b bitmap
		b.setRange(r[0], r[1], 300)
		for i := range uint64(300) {
			if b.has(i) != (i >= r[0] && i < r[1]) {
				t.Errorf("%v: bit %d is %t", r, i, b.has(i))
			}
		}
	}
}
