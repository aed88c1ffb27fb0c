package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Extent is a stretch of an image, in bytes.
type Extent struct {
	Offset, Length int64
}

// End is the offset of the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// FileExtents lists the stretches of a sparse file that hold data; between
// them are holes. File systems that know no holes give one extent.
func FileExtents(f *os.File) ([]Extent, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	var all []Extent
	fd := int(f.Fd())
	for off := int64(0); off < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return nil, fmt.Errorf("looking for data in %s: %w", f.Name(), err)
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("looking for holes in %s: %w", f.Name(), err)
		}
		all = append(all, Extent{data, hole - data})
		off = hole
	}
	return all, nil
}

// pagesOf marks, for each chunk that the extents touch, the pages they touch.
// The extents may come in any order and overlap; what lies outside the image
// is an error.
func pagesOf(ix *index, extents []Extent) (map[int]bitmap, error) {
	pages := map[int]bitmap{}
	for _, e := range extents {
		if e.Offset < 0 || e.Length < 0 || e.Length > ix.size-e.Offset {
			return nil, fmt.Errorf("extent of %d bytes at %d lies outside the image of %d bytes", e.Length, e.Offset, ix.size)
		}
		if e.Length == 0 {
			continue
		}
		last := int((e.End() - 1) / int64(ix.pageSize))
		for p := int(e.Offset / int64(ix.pageSize)); p <= last; p++ {
			c := p / ix.chunkPages
			if pages[c] == nil {
				pages[c] = make(bitmap, ix.chunkPages/8)
			}
			pages[c].set(p % ix.chunkPages)
		}
	}
	return pages, nil
}
