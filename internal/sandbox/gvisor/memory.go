package gvisor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	metadata "gvisor.dev/gvisor/pkg/sentry/pgalloc/pgalloc_metadata_go_proto"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox/saved"
)

// A sandbox's memory is one file, in which a page keeps its place from one
// snapshot to the next. So does a snapshot's: its pages are where they were in
// the sandbox, and what a difference leaves out is a hole, as in the memory of
// a machine. gVisor itself writes the pages that it saves one after the other,
// and where each belongs into another file.
const (
	pageBytes  = 4 << 10
	chunkBytes = 1 << 30   // by which the sandbox's memory file grows
	maxChunks  = 4 << 10   // of a sandbox's memory file
	maxRanges  = 256 << 20 // bytes of the file that says where pages belong
	copyBytes  = 256 << 10 // that are looked at together: more leaves the processor's cache
)

// parseRanges reads where the pages of a snapshot belong, in the order in which
// they were written, from the file in which gVisor says so. It came from a
// sandbox. size is that of the sandbox's memory file.
func parseRanges(b []byte) (ranges []memmap.FileRange, size int64, err error) {
	if len(b) < 8 {
		return nil, 0, io.ErrUnexpectedEOF
	}
	n := binary.LittleEndian.Uint64(b)
	if b = b[8:]; n > uint64(len(b)) {
		return nil, 0, io.ErrUnexpectedEOF
	}
	var m metadata.MemoryFileMetadataProto
	if err := proto.Unmarshal(b[:n], &m); err != nil {
		return nil, 0, err
	}
	if m.Version != 1 {
		return nil, 0, fmt.Errorf("version %d of a memory file's description, want 1", m.Version)
	}
	if len(m.Chunks) > maxChunks {
		return nil, 0, fmt.Errorf("a memory file of %d GiB, there may be %d", len(m.Chunks), maxChunks)
	}
	end := uint64(0)
	for _, a := range m.MemAcct {
		switch {
		case a.Start < end || a.End <= a.Start || a.End > uint64(len(m.Chunks))*chunkBytes:
			return nil, 0, fmt.Errorf("pages at %#x to %#x are out of order, or outside the memory", a.Start, a.End)
		case a.Start%pageBytes != 0 || a.End%pageBytes != 0:
			return nil, 0, fmt.Errorf("%#x to %#x are no pages", a.Start, a.End)
		}
		end = a.End
		if a.KnownCommitted {
			ranges = append(ranges, memmap.FileRange{Start: a.Start, End: a.End})
		}
	}
	return ranges, int64(len(m.Chunks)) * chunkBytes, nil
}

// memory is what the folders of an Image have together.
type memory struct {
	*saved.Memory
	upper []pager.Layer // of all files but the last, which has all
}

// openMemory opens the memory in folders, the newest first.
func openMemory(dirs []string) (*memory, error) {
	m, err := saved.OpenMemory(dirs)
	if err != nil {
		return nil, err
	}
	upper, err := pager.SparseLayers(m.Files[:len(dirs)-1])
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return &memory{m, upper}, nil
}

// find says which file has the byte at off, and until where it has what
// follows. Where no file has it, that is -1.
func (m *memory) find(off int64) (file int, end int64) {
	end = int64(maxChunks) * chunkBytes
	for i, l := range m.upper {
		extents := l.Extents
		// The first that ends behind off.
		n, _ := slices.BinarySearchFunc(extents, off, func(x pager.Extent, off int64) int {
			if x.Offset+x.Length > off {
				return 1
			}
			return -1
		})
		if n == len(extents) {
			continue
		}
		if extents[n].Offset <= off {
			return i, min(end, extents[n].Offset+extents[n].Length)
		}
		end = min(end, extents[n].Offset)
	}
	if last := len(m.upper); off < m.Sizes[last] {
		return last, min(end, m.Sizes[last])
	}
	return -1, end
}

// same says of each page of b, which is to be at off, if it is there already.
// space is as long as b.
func (m *memory) same(b, space []byte, off int64, is []bool) error {
	for i := range is {
		is[i] = true
	}
	for done := 0; done < len(b); {
		file, end := m.find(off + int64(done))
		n := int(min(end-off-int64(done), int64(len(b)-done)))
		if file >= 0 {
			if _, err := m.Files[file].ReadAt(space[done:done+n], off+int64(done)); err != nil {
				return fmt.Errorf("read what the sandbox was restored from: %w", err)
			}
		}
		for p := done / pageBytes; file < 0 && p*pageBytes < done+n; p++ {
			is[p] = false
		}
		done += n
	}
	for p := 0; p < len(b); p += pageBytes {
		is[p/pageBytes] = is[p/pageBytes] && bytes.Equal(b[p:p+pageBytes], space[p:p+pageBytes])
	}
	return nil
}

// layOut writes the pages that a sandbox has saved to where they belong, but
// for those that the base has there already. It returns how many bytes of pages
// there are. Without a base, all are written.
func layOut(ctx context.Context, saved *os.File, ranges []memmap.FileRange, base *memory, to *os.File) (n int64, err error) {
	b, space := make([]byte, copyBytes), make([]byte, copyBytes)
	is := make([]bool, copyBytes/pageBytes)
	for _, r := range ranges {
		for r.Length() > 0 {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			off := int64(r.Start) //nolint:gosec // bounded by parseRanges
			part := b[:min(r.Length(), copyBytes)]
			// Not through a mapping: the sandbox may still have the file.
			if _, err := saved.ReadAt(part, n); err != nil {
				return 0, fmt.Errorf("the pages that the sandbox saved: %w", err)
			}
			clear(is)
			if base != nil {
				if err := base.same(part, space[:len(part)], off, is); err != nil {
					return 0, err
				}
			}
			if err := writePages(to, part, off, is); err != nil {
				return 0, err
			}
			n += int64(len(part))
			r.Start += uint64(len(part))
		}
	}
	switch fi, err := saved.Stat(); {
	case err != nil:
		return 0, err
	case fi.Size() != n:
		return 0, fmt.Errorf("the sandbox saved %d bytes of pages, and says where %d of them belong", fi.Size(), n)
	}
	return n, nil
}

// writePages writes the pages of b to off, but for those to skip.
func writePages(to *os.File, b []byte, off int64, skip []bool) error {
	for n := 0; n < len(b); {
		end := n
		for end < len(b) && !skip[end/pageBytes] {
			end += pageBytes
		}
		if end > n {
			if _, err := to.WriteAt(b[n:end], off+int64(n)); err != nil {
				return err
			}
		}
		n = end + pageBytes // that one is skipped
	}
	return nil
}

// holes tells if a hole of a page can be in a file.
func holes(f *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, os.NewSyscallError("fstatfs", err)
	}
	return st.Bsize <= pageBytes, nil
}
