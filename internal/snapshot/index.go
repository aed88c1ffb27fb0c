package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"unsafe"
)

// A layer's index says for each chunk (a fixed stretch of the image) which of
// its pages the layer holds, which it turns to zeros, and which it leaves to
// its parent (without a parent: to be zero). The pages held are packed one
// after another and stored as one object, named by its digest. Form:
//
//	magic "SKLAYER", version u8
//	page size u32, pages per chunk u32, image size u64, parent digest [32],
//	number of entries u32                              (all little-endian)
//	per entry: chunk number u32, flags u8, [chunk digest, when it holds pages],
//	           [bitmap of held pages], [bitmap of zeroed pages]
//
// A bitmap is left out when it is empty or full; the flags tell which. There
// is one form only for one content, so equal layers have equal digests.
const (
	indexMagic   = "SKLAYER"
	indexVersion = 1
	indexHeader  = len(indexMagic) + 1 + 4 + 4 + 8 + 32 + 4
	maxIndex     = 256 << 20 // bytes
)

// Flags of an entry.
const (
	flagData     = 1 << iota // holds pages: a digest follows
	flagDataFull             // all of them: no bitmap
	flagZero                 // zeroes pages
	flagZeroFull             // all of them: no bitmap
)

// entry is what a layer knows of one chunk.
type entry struct {
	chunk  uint32
	digest Digest // of the packed pages; zero when it holds none
	data   bitmap // pages held
	zero   bitmap // pages that are zero whatever the parent says
}

// index is a layer's table.
type index struct {
	pageSize   int
	chunkPages int
	size       int64 // bytes of the image
	parent     Digest
	entries    []entry // ascending by chunk

	// Of a decoded index: bitmaps that its entries share, and the bytes of
	// those that they do not. Nobody changes them.
	none, all bitmap
	own       int64
}

// memory is about how much an index takes, in bytes.
func (ix *index) memory() int64 {
	return int64(len(ix.entries))*int64(unsafe.Sizeof(entry{})) + ix.own
}

type bitmap []byte

func (b bitmap) has(i int) bool { return b[i/8]&(1<<(i%8)) != 0 }
func (b bitmap) set(i int)      { b[i/8] |= 1 << (i % 8) }

func (b bitmap) count() int {
	n := 0
	for _, x := range b {
		n += bits.OnesCount8(x)
	}
	return n
}

// rank is the number of set bits before i.
func (b bitmap) rank(i int) int {
	return b[:i/8].count() + bits.OnesCount8(b[i/8]&(1<<(i%8)-1))
}

func (ix *index) chunkBytes() int64 { return int64(ix.pageSize) * int64(ix.chunkPages) }

func (ix *index) chunks() int { return int((ix.size + ix.chunkBytes() - 1) / ix.chunkBytes()) }

// pagesIn is how many pages the image has in a chunk; the last may have less.
func (ix *index) pagesIn(chunk int) int {
	left := ix.size - int64(chunk)*ix.chunkBytes()
	return int(min(int64(ix.chunkPages), (left+int64(ix.pageSize)-1)/int64(ix.pageSize)))
}

// Bounds of a layer's geometry.
const (
	minPage  = 4 << 10
	maxPage  = 2 << 20
	maxChunk = 16 << 20
	// An open layer keeps 8 bytes for each of its chunks and ancestors.
	maxChunks = 1 << 22
)

func checkGeometry(pageSize, chunkPages int, size int64) error {
	switch {
	case pageSize < minPage || pageSize > maxPage || pageSize&(pageSize-1) != 0:
		return fmt.Errorf("page size %d is no power of two from %d to %d", pageSize, minPage, maxPage)
	case chunkPages < 8 || chunkPages%8 != 0 || pageSize*chunkPages > maxChunk:
		return fmt.Errorf("%d pages of %d bytes per chunk: must be a multiple of 8, and at most %d bytes", chunkPages, pageSize, maxChunk)
	case size < 0 || size > maxMemory:
		return fmt.Errorf("image of %d bytes, allowed are %d", size, int64(maxMemory))
	case size/(int64(pageSize)*int64(chunkPages)) > maxChunks:
		return errors.New("image has too many chunks")
	}
	return nil
}

func (ix *index) encode() []byte {
	b := make([]byte, 0, indexHeader+len(ix.entries)*(4+1+32))
	b = append(b, indexMagic...)
	b = append(b, indexVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(ix.pageSize))
	b = binary.LittleEndian.AppendUint32(b, uint32(ix.chunkPages))
	b = binary.LittleEndian.AppendUint64(b, uint64(ix.size))
	b = append(b, ix.parent[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(ix.entries)))
	for i := range ix.entries {
		e := &ix.entries[i]
		data, zero, all := e.data.count(), e.zero.count(), ix.pagesIn(int(e.chunk))
		flags := flagFor(data, all, flagData, flagDataFull) | flagFor(zero, all, flagZero, flagZeroFull)
		b = binary.LittleEndian.AppendUint32(b, e.chunk)
		b = append(b, flags)
		if data > 0 {
			b = append(b, e.digest[:]...)
		}
		if data > 0 && data < all {
			b = append(b, e.data...)
		}
		if zero > 0 && zero < all {
			b = append(b, e.zero...)
		}
	}
	return b
}

func flagFor(n, all int, some, full byte) byte {
	switch n {
	case 0:
		return 0
	case all:
		return some | full
	}
	return some
}

// errShort: the index ends before it should.
var errShort = errors.New("index is cut short")

func decodeIndex(b []byte) (*index, error) {
	if len(b) > maxIndex {
		return nil, fmt.Errorf("layer index has %d bytes, allowed are %d", len(b), maxIndex)
	}
	if len(b) < indexHeader {
		return nil, errShort
	}
	if string(b[:len(indexMagic)]) != indexMagic {
		return nil, errors.New("not a layer index")
	}
	if v := b[len(indexMagic)]; v != indexVersion {
		return nil, &VersionError{What: "layer index", Have: int(v), Own: indexVersion}
	}
	b = b[len(indexMagic)+1:]
	le := binary.LittleEndian
	ix := &index{pageSize: int(le.Uint32(b)), chunkPages: int(le.Uint32(b[4:])), size: int64(le.Uint64(b[8:]))}
	copy(ix.parent[:], b[16:48])
	n := int(le.Uint32(b[48:]))
	b = b[52:]
	if err := checkGeometry(ix.pageSize, ix.chunkPages, ix.size); err != nil {
		return nil, err
	}
	if n > ix.chunks() || n > len(b)/5 {
		return nil, fmt.Errorf("layer index announces %d entries, too many for its image or its length", n)
	}
	ix.entries = make([]entry, 0, n)
	ix.none, ix.all = make(bitmap, ix.chunkPages/8), bytes.Repeat([]byte{0xff}, ix.chunkPages/8)
	for range n {
		var err error
		if b, err = ix.decodeEntry(b); err != nil {
			return nil, err
		}
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%d bytes follow the layer index", len(b))
	}
	return ix, nil
}

func (ix *index) decodeEntry(b []byte) ([]byte, error) {
	if len(b) < 5 {
		return nil, errShort
	}
	e := entry{chunk: binary.LittleEndian.Uint32(b)}
	flags := b[4]
	b = b[5:]
	if int64(e.chunk) >= int64(ix.chunks()) {
		return nil, fmt.Errorf("entry for chunk %d of an image with %d", e.chunk, ix.chunks())
	}
	if n := len(ix.entries); n > 0 && ix.entries[n-1].chunk >= e.chunk {
		return nil, fmt.Errorf("entry for chunk %d is out of order", e.chunk)
	}
	if flags == 0 || flags > flagZeroFull|flagZero|flagDataFull|flagData ||
		flags&flagData == 0 && flags&flagDataFull != 0 || flags&flagZero == 0 && flags&flagZeroFull != 0 {
		return nil, fmt.Errorf("entry for chunk %d has flags %#x", e.chunk, flags)
	}
	if flags&flagZero != 0 && ix.parent.IsZero() {
		return nil, fmt.Errorf("entry for chunk %d zeroes pages of no parent", e.chunk)
	}
	if flags&flagData != 0 {
		if len(b) < len(e.digest) {
			return nil, errShort
		}
		copy(e.digest[:], b)
		b = b[len(e.digest):]
	}
	all := ix.pagesIn(int(e.chunk))
	var err error
	if e.data, b, err = ix.decodeBitmap(b, all, flags&flagData != 0, flags&flagDataFull != 0); err != nil {
		return nil, fmt.Errorf("entry for chunk %d: %w", e.chunk, err)
	}
	if e.zero, b, err = ix.decodeBitmap(b, all, flags&flagZero != 0, flags&flagZeroFull != 0); err != nil {
		return nil, fmt.Errorf("entry for chunk %d: %w", e.chunk, err)
	}
	for i := range e.data {
		if e.data[i]&e.zero[i] != 0 {
			return nil, fmt.Errorf("entry for chunk %d both holds and zeroes a page", e.chunk)
		}
	}
	ix.entries = append(ix.entries, e)
	return b, nil
}

func (ix *index) decodeBitmap(b []byte, all int, some, full bool) (bitmap, []byte, error) {
	switch {
	case !some:
		return ix.none, b, nil
	case full && all == ix.chunkPages:
		return ix.all, b, nil
	}
	m := make(bitmap, ix.chunkPages/8)
	ix.own += int64(len(m))
	switch {
	case full: // the last chunk, cut short
		for i := range all {
			m.set(i)
		}
	default:
		if len(b) < len(m) {
			return nil, nil, errShort
		}
		copy(m, b)
		b = b[len(m):]
		if n := m.count(); n == 0 || n >= all || m.rank(min(all, len(m)*8-1)) < n && all < len(m)*8 {
			return nil, nil, fmt.Errorf("bitmap with %d of %d pages is not canonical", n, all)
		}
	}
	return m, b, nil
}
