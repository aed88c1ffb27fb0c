package snapshot

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/singleflight"
)

// Layer is an open layer together with its ancestors: it reads like the whole
// image. Every byte is verified when it is read.
type Layer struct {
	s      *Store
	chain  []*index   // the layer itself first
	tables [][]*entry // per layer of the chain, by chunk number
	ctx    context.Context
	cancel context.CancelFunc

	cache *chunkCache
	fetch singleflight.Group
}

// OpenLayer opens a layer for reading. The reads go on until Close, whatever
// becomes of ctx. Hold a Pin on its snapshot, or GC may remove it meanwhile.
func (s *Store) OpenLayer(ctx context.Context, d Digest) (*Layer, error) {
	chain, err := s.readChain(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("opening layer %s: %w", d, err)
	}
	l := &Layer{s: s, chain: chain, cache: newChunkCache(s.opts.CacheBytes)}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for _, ix := range chain {
		table := make([]*entry, chain[0].chunks())
		for i := range ix.entries {
			if e := &ix.entries[i]; int(e.chunk) < len(table) {
				table[e.chunk] = e
			}
		}
		l.tables = append(l.tables, table)
	}
	return l, nil
}

// Close ends all reads.
func (l *Layer) Close() error { l.cancel(); return nil }

// Size is the image's size in bytes.
func (l *Layer) Size() int64 { return l.chain[0].size }

// PageSize is the size of a page in bytes.
func (l *Layer) PageSize() int { return l.chain[0].pageSize }

// Depth is the number of layers in the chain, 1 for a base.
func (l *Layer) Depth() int { return len(l.chain) }

// source says where a page's content is: in an entry, at a place among its
// packed pages; nil when the page is zero.
func (l *Layer) source(chunk, page int) (*entry, int) {
	for depth, table := range l.tables {
		// A parent shorter than its child is zero beyond its end.
		if chunk >= l.chain[depth].chunks() || page >= l.chain[depth].pagesIn(chunk) {
			return nil, 0
		}
		e := table[chunk]
		if e == nil {
			continue
		}
		if e.data.has(page) {
			return e, e.data.rank(page)
		}
		if e.zero.has(page) {
			return nil, 0
		}
	}
	return nil, 0
}

// Extents lists, in order and merged, the stretches of the image that are not
// known to be zero.
func (l *Layer) Extents() []Extent {
	return l.extents(func(chunk, page int) bool { e, _ := l.source(chunk, page); return e != nil })
}

// Changed lists the stretches that the layer itself holds or zeroes: all that
// can differ from its parent.
func (l *Layer) Changed() []Extent {
	return l.extents(func(chunk, page int) bool {
		e := l.tables[0][chunk]
		return e != nil && (e.data.has(page) || e.zero.has(page))
	})
}

func (l *Layer) extents(in func(chunk, page int) bool) []Extent {
	ix := l.chain[0]
	var all []Extent
	for chunk := range ix.chunks() {
		if !l.mentioned(chunk) {
			continue
		}
		for page := range ix.pagesIn(chunk) {
			if !in(chunk, page) {
				continue
			}
			off := int64(chunk)*ix.chunkBytes() + int64(page*ix.pageSize)
			n := min(int64(ix.pageSize), ix.size-off)
			if last := len(all) - 1; last >= 0 && all[last].End() == off {
				all[last].Length += n
			} else {
				all = append(all, Extent{off, n})
			}
		}
	}
	return all
}

func (l *Layer) mentioned(chunk int) bool {
	for _, table := range l.tables {
		if table[chunk] != nil {
			return true
		}
	}
	return false
}

// ReadAt implements io.ReaderAt. Damage gives a *DamageError.
func (l *Layer) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading a layer at %d", off)
	}
	n := int(max(0, min(int64(len(p)), l.Size()-off)))
	if err := l.readRange(l.ctx, p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readPadded fills p with the image at off, and with zeros beyond its end.
func (l *Layer) readPadded(ctx context.Context, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), l.Size()-off))
	clear(p[n:])
	return l.readRange(ctx, p[:n], off)
}

func (l *Layer) readRange(ctx context.Context, p []byte, off int64) error {
	ix := l.chain[0]
	var held *entry
	var plain []byte
	for len(p) > 0 {
		chunk, in := int(off/ix.chunkBytes()), int(off%ix.chunkBytes())
		page, at := in/ix.pageSize, in%ix.pageSize
		n := min(len(p), ix.pageSize-at)
		e, rank := l.source(chunk, page)
		if e == nil {
			clear(p[:n])
		} else {
			if e != held {
				var err error
				if plain, err = l.load(ctx, e); err != nil {
					return err
				}
				held = e
			}
			// The last page of a short image was stored whole.
			copy(p[:n], plain[rank*ix.pageSize+at:])
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// load gives an entry's packed pages, from the cache or the backend. Readers of
// the same chunk share one fetch, which is the layer's and no single reader's.
func (l *Layer) load(ctx context.Context, e *entry) ([]byte, error) {
	if plain, ok := l.cache.get(e.digest); ok {
		return plain, nil
	}
	ch := l.fetch.DoChan(string(e.digest[:]), func() (any, error) {
		plain, err := l.s.readChunk(l.ctx, e.digest, e.data.count()*l.chain[0].pageSize)
		if err == nil {
			l.cache.put(e.digest, plain)
		}
		return plain, err
	})
	select {
	case r := <-ch:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.([]byte), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *Store) readChunk(ctx context.Context, d Digest, length int) ([]byte, error) {
	stored, err := s.read(ctx, chunkName(d), maxChunk+chunkHeader)
	if err != nil {
		return nil, s.seen(chunkName(d), err)
	}
	plain, err := decodeChunk(stored, d, length, nil)
	return plain, s.seen(chunkName(d), err)
}
