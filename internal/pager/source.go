package pager

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// Source is the content of a memory image. It is read concurrently. A source
// that reads over a network bounds its reads itself: a Server waits for them.
type Source interface {
	// ReadAt fills p whole or fails; what no layer has is zero.
	io.ReaderAt
	// Size is the image's length in bytes.
	Size() int64
	// Zero tells without reading that [off, off+n) is all zeros. False means
	// it is not known.
	Zero(off, n int64) bool
}

// Extent is a range of the image, Length bytes at Offset, that lies in a
// layer's file at FileOffset.
type Extent struct {
	Offset, Length, FileOffset int64
}

// Layer is a file with extents of the image. Extents are sorted and do not
// overlap.
type Layer struct {
	Reader  io.ReaderAt
	Extents []Extent
}

// maxExtents bounds a layer's table.
const maxExtents = 1 << 22

// Layered is a Source made of layers, the top one first: what a layer lacks
// the next below provides, and what none has is zero. It does not own the
// layers' files.
type Layered struct {
	size     int64
	segments []segment
}

type segment struct {
	Extent
	reader io.ReaderAt
}

// NewLayered merges layers, top first, to one table.
func NewLayered(size int64, layers ...Layer) (*Layered, error) {
	if size < 0 || size > maxOffset {
		return nil, fmt.Errorf("image size %d must be 0 to %d", size, int64(maxOffset))
	}
	l := &Layered{size: size}
	for i, layer := range layers {
		if err := checkExtents(size, layer); err != nil {
			return nil, fmt.Errorf("layer %d from the top: %w", i, err)
		}
		l.segments = under(l.segments, layer)
		if len(l.segments) > maxExtents {
			return nil, fmt.Errorf("layers have more than %d extents together: compact them", maxExtents)
		}
	}
	return l, nil
}

func checkExtents(size int64, layer Layer) error {
	if layer.Reader == nil {
		return errors.New("no reader")
	}
	if len(layer.Extents) > maxExtents {
		return fmt.Errorf("%d extents, at most %d", len(layer.Extents), maxExtents)
	}
	var end int64
	for _, e := range layer.Extents {
		if e.Length <= 0 || e.Offset < end || e.Length > size-e.Offset || e.FileOffset < 0 || e.FileOffset > maxOffset {
			return fmt.Errorf("extent %+v overlaps, is out of order or outside the image of %d bytes", e, size)
		}
		end = e.Offset + e.Length
	}
	return nil
}

// under puts what of the layer shows below the segments in its place.
func under(top []segment, layer Layer) []segment {
	merged := make([]segment, 0, len(top)+len(layer.Extents))
	t := 0
	for _, e := range layer.Extents {
		for e.Length > 0 {
			for t < len(top) && top[t].Offset+top[t].Length <= e.Offset {
				merged = append(merged, top[t])
				t++
			}
			visible := e.Length
			if t < len(top) {
				visible = min(visible, max(0, top[t].Offset-e.Offset))
			}
			if visible > 0 {
				merged = append(merged, segment{Extent{e.Offset, visible, e.FileOffset}, layer.Reader})
				e = advance(e, visible)
				continue
			}
			e = advance(e, min(e.Length, top[t].Offset+top[t].Length-e.Offset))
		}
	}
	return append(merged, top[t:]...)
}

func advance(e Extent, n int64) Extent {
	return Extent{e.Offset + n, e.Length - n, e.FileOffset + n}
}

// Size implements Source.
func (l *Layered) Size() int64 { return l.size }

// Zero implements Source.
func (l *Layered) Zero(off, n int64) bool {
	i := l.find(off)
	return i == len(l.segments) || l.segments[i].Offset >= off+n
}

// find is the index of the first segment that ends after off.
func (l *Layered) find(off int64) int {
	return sort.Search(len(l.segments), func(i int) bool {
		return l.segments[i].Offset+l.segments[i].Length > off
	})
}

// ReadAt implements io.ReaderAt over the whole image.
func (l *Layered) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d", off)
	}
	want := len(p)
	if int64(want) > l.size-off {
		want = int(max(0, l.size-off))
	}
	n := 0
	for i := l.find(off); n < want; i++ {
		rest := p[n:want]
		at := off + int64(n)
		if i == len(l.segments) || l.segments[i].Offset >= at+int64(len(rest)) {
			clear(rest)
			n = want
			break
		}
		s := l.segments[i]
		if gap := s.Offset - at; gap > 0 {
			clear(rest[:gap])
			n += int(gap)
			at, rest = s.Offset, rest[gap:]
		}
		in := at - s.Offset
		part := rest[:min(int64(len(rest)), s.Length-in)]
		m, err := s.reader.ReadAt(part, s.FileOffset+in)
		n += m
		if m < len(part) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, fmt.Errorf("read %d bytes of image offset %#x from layer: %w", len(part), at, err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// SparseLayer makes a layer of a sparse file: its data are the extents, its
// holes let the layers below show. An extent is as fine as the file system's
// blocks.
func SparseLayer(f *os.File) (Layer, error) {
	info, err := f.Stat()
	if err != nil {
		return Layer{}, fmt.Errorf("sparse layer: %w", err)
	}
	layer := Layer{Reader: f}
	for pos := int64(0); pos < info.Size(); {
		data, err := unix.Seek(int(f.Fd()), pos, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return Layer{}, fmt.Errorf("find data in %s: %w", f.Name(), err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return Layer{}, fmt.Errorf("find hole in %s: %w", f.Name(), err)
		}
		hole = min(hole, info.Size()) // it may grow meanwhile
		if hole <= data {
			break
		}
		if len(layer.Extents) == maxExtents {
			return Layer{}, fmt.Errorf("%s has more than %d extents: compact it", f.Name(), maxExtents)
		}
		layer.Extents = append(layer.Extents, Extent{data, hole - data, data})
		pos = hole
	}
	return layer, nil
}

// SparseLayers makes a layer of each of sparse files.
func SparseLayers(files []*os.File) ([]Layer, error) {
	layers := make([]Layer, len(files))
	for i, f := range files {
		var err error
		if layers[i], err = SparseLayer(f); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// NewSparseFile is a Source of one sparse file.
func NewSparseFile(f *os.File) (*Layered, error) {
	layer, err := SparseLayer(f)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("sparse file: %w", err)
	}
	size := info.Size()
	layer.Extents = slices.DeleteFunc(layer.Extents, func(e Extent) bool { return e.Offset+e.Length > size })
	return NewLayered(size, layer)
}

var zeros [64 << 10]byte

func allZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
