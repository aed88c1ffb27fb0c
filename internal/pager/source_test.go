package pager_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/internal/pager"
)

// TestLayeredAgainstModel builds random layers and compares with a plain array
// painted from the bottom up.
func TestLayeredAgainstModel(t *testing.T) {
	t.Parallel()
	for range 300 {
		const size = 500
		layers := make([]pager.Layer, rand.IntN(5))
		for i := range layers {
			file := make([]byte, size)
			for j := range file {
				file[j] = byte(1 + rand.IntN(255))
			}
			layers[i].Reader = bytes.NewReader(file)
			for at := rand.IntN(60); at < size; {
				n := min(1+rand.IntN(80), size-at)
				layers[i].Extents = append(layers[i].Extents,
					pager.Extent{Offset: int64(at), Length: int64(n), FileOffset: int64(rand.IntN(size - n + 1))})
				at += n + rand.IntN(3)*rand.IntN(60)
			}
		}
		want := make([]byte, size)
		covered := make([]bool, size)
		for i := len(layers) - 1; i >= 0; i-- {
			for _, e := range layers[i].Extents {
				_, _ = layers[i].Reader.ReadAt(want[e.Offset:e.Offset+e.Length], e.FileOffset)
				for j := range e.Length {
					covered[e.Offset+j] = true
				}
			}
		}
		src, err := pager.NewLayered(size, layers...)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			off := rand.IntN(size)
			n := rand.IntN(size - off + 1)
			got := bytes.Repeat([]byte{0xEE}, n)
			if m, err := src.ReadAt(got, int64(off)); m != n || err != nil {
				t.Fatalf("read %d at %d: %d, %v", n, off, m, err)
			}
			if !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("read %d at %d differs", n, off)
			}
			any := false
			for _, c := range covered[off : off+n] {
				any = any || c
			}
			if n > 0 && src.Zero(int64(off), int64(n)) == any {
				t.Fatalf("Zero(%d, %d) is %t", off, n, !any)
			}
		}
		if n, err := src.ReadAt(make([]byte, 10), size-4); n != 4 || !errors.Is(err, io.EOF) {
			t.Fatalf("read beyond the end: %d, %v", n, err)
		}
	}
}

func TestLayeredRefuses(t *testing.T) {
	t.Parallel()
	r := bytes.NewReader(nil)
	for name, l := range map[string]pager.Layer{
		"no reader":    {Extents: []pager.Extent{{Length: 1}}},
		"empty":        {Reader: r, Extents: []pager.Extent{{}}},
		"negative":     {Reader: r, Extents: []pager.Extent{{Offset: -1, Length: 5}}},
		"beyond":       {Reader: r, Extents: []pager.Extent{{Offset: 95, Length: 6}}},
		"overlap":      {Reader: r, Extents: []pager.Extent{{Length: 5}, {Offset: 4, Length: 5}}},
		"order":        {Reader: r, Extents: []pager.Extent{{Offset: 50, Length: 5}, {Offset: 4, Length: 5}}},
		"file offset":  {Reader: r, Extents: []pager.Extent{{Length: 5, FileOffset: -1}}},
		"overflow":     {Reader: r, Extents: []pager.Extent{{Offset: 10, Length: 1<<63 - 1}}},
		"far from end": {Reader: r, Extents: []pager.Extent{{Offset: 1<<63 - 1, Length: 1}}},
	} {
		if _, err := pager.NewLayered(100, l); err == nil {
			t.Error(name, "was accepted")
		}
	}
	short, err := pager.NewLayered(100, pager.Layer{Reader: r, Extents: []pager.Extent{{Length: 5}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := short.ReadAt(make([]byte, 5), 0); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("truncated layer: %v", err)
	}
}

func TestSparseFile(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 4<<20 + 100
	want := make([]byte, size)
	for _, off := range []int{0, 1 << 20, 3<<20 + 8192, size - 50} {
		copy(want[off:], "data")
		if _, err := f.WriteAt([]byte("data"), int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	src, err := pager.NewSparseFile(f)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := src.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs (%v)", err)
	}
	if !src.Zero(2<<20, 4096) || src.Zero(1<<20, 4096) {
		t.Error("holes are not known")
	}
	empty, err := os.Create(filepath.Join(t.TempDir(), "empty"))
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	if l, err := pager.SparseLayer(empty); err != nil || len(l.Extents) != 0 {
		t.Errorf("%+v, %v", l, err)
	}
}
