package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Page and chunk sizes of layers that do not say otherwise. A chunk of 1 MiB
// keeps the number of objects low and one fault in a remote layer cheap.
const (
	DefaultPage       = 4 << 10
	DefaultChunkPages = 256
)

// LayerOptions say how an image becomes a layer.
type LayerOptions struct {
	// Parent is the layer that this one differs from; zero: none. The image's
	// size may differ from the parent's, page and chunk sizes may not.
	Parent Digest
	// Extents are the only stretches to look at; nil means all of a reader,
	// and what is no hole of an *os.File. Elsewhere the image is zero or, with
	// Inherit, as the parent.
	Extents []Extent
	// Inherit says that what is outside the extents is unchanged from the
	// parent: the image is a diff, such as dirty page tracking gives. Without,
	// the image is complete.
	Inherit bool
	// PageSize (bytes) and ChunkPages; default the parent's, or DefaultPage
	// and DefaultChunkPages.
	PageSize, ChunkPages int
}

// WriteLayer stores size bytes of src as a layer and adds it to the snapshot in
// the given role. Zero pages cost nothing; with a parent, only pages whose
// content differs from the parent's are stored. src may be read by several
// goroutines at once.
func (c *Creation) WriteLayer(ctx context.Context, role string, src io.ReaderAt, size int64, o LayerOptions) (LayerRef, error) {
	ctx, cancel := c.lease.within(ctx)
	defer cancel()
	ref, err := c.writeLayer(ctx, role, src, size, o)
	if err != nil {
		return LayerRef{}, fmt.Errorf("writing layer %q: %w", role, err)
	}
	return ref, c.add(ref)
}

func (c *Creation) writeLayer(ctx context.Context, role string, src io.ReaderAt, size int64, o LayerOptions) (LayerRef, error) {
	w := layerWriter{s: c.s, src: src, inherit: o.Inherit}
	w.ix = &index{pageSize: o.PageSize, chunkPages: o.ChunkPages, size: size, parent: o.Parent}
	if o.Parent.IsZero() {
		if o.Inherit {
			return LayerRef{}, errors.New("without a parent there is nothing to inherit")
		}
	} else {
		var err error
		if w.parent, err = c.s.OpenLayer(ctx, o.Parent); err != nil {
			return LayerRef{}, fmt.Errorf("its parent: %w", err)
		}
		defer w.parent.Close()
		if w.ix.pageSize == 0 {
			w.ix.pageSize = w.parent.PageSize()
		}
		if w.ix.chunkPages == 0 {
			w.ix.chunkPages = w.parent.chain[0].chunkPages
		}
		if p := int64(w.parent.PageSize()); o.Inherit && size != w.parent.Size() && (size%p != 0 || w.parent.Size()%p != 0) {
			return LayerRef{}, errors.New("what is inherited may only change its size by whole pages")
		}
		if w.ix.pageSize != w.parent.PageSize() || w.ix.chunkPages != w.parent.chain[0].chunkPages {
			return LayerRef{}, errors.New("pages and chunks must have the size of its parent's")
		}
	}
	if w.ix.pageSize == 0 {
		w.ix.pageSize = DefaultPage
	}
	if w.ix.chunkPages == 0 {
		w.ix.chunkPages = DefaultChunkPages
	}
	if err := checkGeometry(w.ix.pageSize, w.ix.chunkPages, size); err != nil {
		return LayerRef{}, err
	}
	extents := o.Extents
	if extents == nil {
		extents = []Extent{{0, size}}
		if f, ok := src.(*os.File); ok {
			var err error
			if extents, err = FileExtents(f); err != nil {
				return LayerRef{}, err
			}
		}
	}
	if err := w.write(ctx, extents); err != nil {
		return LayerRef{}, err
	}
	table := w.ix.encode()
	if len(table) > maxIndex {
		return LayerRef{}, fmt.Errorf("index of %d bytes, allowed are %d: use larger chunks", len(table), maxIndex)
	}
	ref := LayerRef{Role: role, Digest: DigestOf(table), Size: size}
	return ref, c.s.put(ctx, layerName(ref.Digest), table)
}

type layerWriter struct {
	s       *Store
	ix      *index
	src     io.ReaderAt
	parent  *Layer
	inherit bool
}

func (w *layerWriter) write(ctx context.Context, extents []Extent) error {
	look, err := pagesOf(w.ix, clip(extents, w.ix.size))
	if err != nil {
		return err
	}
	entries := make([]*entry, w.ix.chunks())
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(w.s.opts.Workers)
	for n := range entries {
		if gctx.Err() != nil {
			break
		}
		if look[n] == nil && (w.inherit || w.parent == nil) {
			continue
		}
		g.Go(func() error {
			e, err := w.chunk(gctx, n, look[n])
			entries[n] = e
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for _, e := range entries {
		if e != nil {
			w.ix.entries = append(w.ix.entries, *e)
		}
	}
	return nil
}

// clip cuts extents that go beyond the image's size, as those of a file do
// that is longer than what is stored of it.
func clip(extents []Extent, size int64) []Extent {
	cut := make([]Extent, 0, len(extents))
	for _, e := range extents {
		if e.Offset < size {
			e.Length = min(e.Length, size-e.Offset)
			cut = append(cut, e)
		}
	}
	return cut
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

func buffer(n int) *[]byte {
	b, _ := buffers.Get().(*[]byte)
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

// chunk stores one chunk's pages and returns its entry, nil when there is
// nothing to say. look marks the pages to read; nil means none.
func (w *layerWriter) chunk(ctx context.Context, n int, look bitmap) (*entry, error) {
	ix, page := w.ix, w.ix.pageSize
	base := int64(n) * ix.chunkBytes()
	e := &entry{chunk: uint32(n), data: make(bitmap, ix.chunkPages/8), zero: make(bitmap, ix.chunkPages/8)}
	img := buffer(int(ix.chunkBytes()))
	defer buffers.Put(img)
	if err := w.read(*img, base, n, look); err != nil {
		return nil, err
	}
	var old *[]byte
	if w.parent != nil {
		old = buffer(int(ix.chunkBytes()))
		defer buffers.Put(old)
		if err := w.parent.readPadded(ctx, *old, base); err != nil {
			return nil, fmt.Errorf("comparing with the parent: %w", err)
		}
	}
	packed := buffer(int(ix.chunkBytes()))
	defer buffers.Put(packed)
	plain := (*packed)[:0]
	for i := range ix.pagesIn(n) {
		if w.inherit && (look == nil || !look.has(i)) {
			continue
		}
		p := (*img)[i*page : (i+1)*page]
		switch {
		case old != nil && bytes.Equal(p, (*old)[i*page:(i+1)*page]):
		case !allZero(p):
			e.data.set(i)
			plain = append(plain, p...)
		case old != nil:
			e.zero.set(i)
		}
	}
	if len(plain) > 0 {
		e.digest = DigestOf(plain)
		return e, w.store(ctx, e.digest, plain)
	}
	if e.zero.count() > 0 {
		return e, nil
	}
	return nil, nil
}

// read fills buf with the marked pages at base; all others, and what lies
// beyond the image, become zero.
func (w *layerWriter) read(buf []byte, base int64, n int, look bitmap) error {
	clear(buf)
	if look == nil {
		return nil
	}
	page := w.ix.pageSize
	for i := 0; i < w.ix.pagesIn(n); {
		if !look.has(i) {
			i++
			continue
		}
		j := i
		for j < w.ix.pagesIn(n) && look.has(j) {
			j++
		}
		off := base + int64(i*page)
		run := buf[i*page : j*page]
		run = run[:min(int64(len(run)), w.ix.size-off)]
		if got, err := w.src.ReadAt(run, off); got < len(run) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("reading the image at %d: %w", off, err)
		}
		i = j
	}
	return nil
}

func (w *layerWriter) store(ctx context.Context, d Digest, plain []byte) error {
	_, ok, err := w.s.have(ctx, chunkName(d))
	if err != nil || ok {
		return err
	}
	out := buffer(len(plain) + chunkHeader)
	defer buffers.Put(out)
	*out = encodeChunk((*out)[:0], plain)
	return w.s.put(ctx, chunkName(d), *out)
}

// allZero compares the page with itself shifted by one, which the library's
// vector code does.
func allZero(p []byte) bool {
	return p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}
