package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// emptyImage is zeros, but for a byte at the start.
type emptyImage struct{ first byte }

func (i emptyImage) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off == 0 && len(p) > 0 {
		p[0] = i.first
	}
	return len(p), nil
}

var _ io.ReaderAt = emptyImage{}

// huge makes a snapshot of 16 TiB with one page.
func huge(t *testing.T, s *Store, first byte) (ID, LayerRef) {
	t.Helper()
	c, err := s.Begin(t.Context(), testManifest(ID{}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort(t.Context())
	ref, err := c.WriteLayer(t.Context(), "memory", emptyImage{first}, maxMemory, LayerOptions{Extents: []Extent{{0, 1}}, ChunkPages: maxChunk / DefaultPage})
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id, ref
}

// Comparing looks at what there is, not at 4 G pages, and ends with its ctx.
func TestDiffOfHugeImages(t *testing.T) {
	s, _ := newStore(t)
	a, _ := huge(t, s, 1)
	b, _ := huge(t, s, 2)
	small, _ := create(t, s, ID{}, noise(1, 3*DefaultPage), LayerOptions{}) // of smaller chunks
	for _, c := range []struct {
		with ID
		want DiffStats
	}{
		{b, DiffStats{SizeB: maxMemory, Changed: 1, ABytes: DefaultPage, BBytes: DefaultPage}},
		{small, DiffStats{SizeB: 3 * DefaultPage, Changed: 1, OnlyB: 2, ABytes: DefaultPage, BBytes: 3 * DefaultPage}},
	} {
		c.want.Role, c.want.SizeA, c.want.PageSize = "memory", maxMemory, DefaultPage
		if got, err := s.Diff(t.Context(), a, c.with); err != nil || len(got) != 1 || got[0] != c.want {
			t.Errorf("%+v, %v, want %+v", got, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var ls [2]*Layer
	for i, id := range []ID{a, b} {
		m, err := s.Describe(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if ls[i], err = s.OpenLayer(ctx, m.Layers[0].Digest); err != nil {
			t.Fatal(err)
		}
		defer ls[i].Close()
	}
	cancel()
	wantErr(t, comparePages(ctx, ls, &DiffStats{PageSize: DefaultPage}), context.Canceled)
}

// An entry of five bytes takes no bitmaps of its own, and all tables of a chain
// together are bounded.
func TestIndexIsBounded(t *testing.T) {
	ix := index{pageSize: DefaultPage, chunkPages: maxChunk / DefaultPage, size: 1000*maxChunk + DefaultPage, parent: Digest{1}}
	table := ix.encode()
	binary.LittleEndian.PutUint32(table[len(table)-4:], 1001)
	for n := range uint32(1001) {
		table = append(binary.LittleEndian.AppendUint32(table, n), flagZero|flagZeroFull)
	}
	got, err := decodeIndex(table)
	if err != nil || len(got.entries) != 1001 {
		t.Fatal(err)
	}
	if !bytes.Equal(got.encode(), table) {
		t.Error("it is encoded differently")
	}
	if got.own != int64(got.chunkPages/8) { // of the last chunk, that has one page
		t.Errorf("bitmaps of %d bytes for full and empty chunks", got.own)
	}
	if e := got.entries[1000]; e.zero.count() != 1 || got.entries[999].zero.count() != got.chunkPages || e.data.count() != 0 {
		t.Error("the shared bitmaps are wrong")
	}

	s, b := newStore(t)
	img := noise(1, 1<<20)
	id, base := create(t, s, ID{}, img, LayerOptions{})
	img[0] ^= 1
	_, diff := create(t, s, id, img, LayerOptions{Parent: base.Digest})
	one, err := s.readIndex(t.Context(), base.Digest)
	if err != nil {
		t.Fatal(err)
	}
	tight := New(b, Options{maxOpen: one.memory() + 8})
	wantImage(t, tight, base.Digest, append([]byte{img[0] ^ 1}, img[1:]...))
	if _, err := tight.OpenLayer(t.Context(), diff.Digest); err == nil || errors.Is(err, ErrDamaged) || errors.Is(err, ErrForeign) {
		t.Errorf("a chain with larger tables than allowed: %v", err)
	}
}
