package pager

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// WorkingSet is an open working-set file: the pages that a machine needs for
// its first response, in one piece, in the order it needs them.
type WorkingSet struct {
	index   *wsIndex
	file    *os.File
	mapping []byte        // of the content; nil when it is read directly
	checked []atomic.Bool // chunks whose sum was right, by their number
}

// OpenWorkingSet opens a file and checks its index, not yet its content. With
// direct the content is read past the page cache, where the file system can:
// best for content that is read once from a fast disk. Otherwise it is mapped,
// so that one open file serves any number of machines with their content in
// memory once; a piece's checksum is checked at its first use.
func OpenWorkingSet(path string, direct bool) (*WorkingSet, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open working set: %w", err)
	}
	x, err := readIndex(f)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open working set %s: %w", path, err)
	}
	w := &WorkingSet{index: x, file: f, checked: make([]atomic.Bool, len(x.sums))}
	if x.dataSize == 0 || direct && setDirect(f) {
		return w, nil
	}
	w.mapping, err = unix.Mmap(int(f.Fd()), x.dataOffset, int(x.dataSize), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open working set %s: map content: %w", path, err)
	}
	return w, nil
}

// setDirect is false for a file system that cannot (tmpfs).
func setDirect(f *os.File) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return false
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags|unix.O_DIRECT)
	return err == nil
}

func readIndex(f *os.File) (*wsIndex, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	header := make([]byte, wsHeader)
	if n, err := f.ReadAt(header, 0); n < wsHeader {
		return nil, fmt.Errorf("%w: header: %w", ErrDamaged, err)
	}
	length, err := indexLength(header, info.Size())
	if err != nil {
		return nil, err
	}
	index := make([]byte, length)
	if err := readFull(f, index, 0); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrDamaged, err)
	}
	return decodeIndex(index, info.Size())
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %#x: %w", len(p), off, err)
}

// Close closes the file, once no Server prefetches from it.
func (w *WorkingSet) Close() error {
	var err error
	if w.mapping != nil {
		err = unix.Munmap(w.mapping)
		w.mapping = nil
	}
	return errors.Join(err, w.file.Close())
}

// PageSize is in bytes.
func (w *WorkingSet) PageSize() int { return w.index.pageSize }

// Pages counts the set's pages, and those among them that are zeros and take
// no room in the file.
func (w *WorkingSet) Pages() (all, zero int) { return w.index.pages() }

// Digest is the SHA-256 of the set's content.
func (w *WorkingSet) Digest() [sha256.Size]byte { return w.index.digest }

// Recording gives back the pages in order, to merge with another recording.
func (w *WorkingSet) Recording() Recording {
	all, _ := w.index.pages()
	rec := Recording{PageSize: w.index.pageSize, Pages: make([]uint64, 0, all)}
	for _, r := range w.index.runs {
		for i := range uint64(r.Count) {
			rec.Pages = append(rec.Pages, r.Page+i)
		}
	}
	return rec
}

// Advise asks the kernel to read the content ahead, while the machine's
// monitor starts. It returns at once.
func (w *WorkingSet) Advise() error {
	if err := unix.Fadvise(int(w.file.Fd()), w.index.dataOffset, w.index.dataSize, unix.FADV_WILLNEED); err != nil {
		return fmt.Errorf("read working set ahead: %w", err)
	}
	return nil
}

// Verify reads the whole content and checks every sum.
func (w *WorkingSet) Verify(ctx context.Context) error {
	c, err := newChunks(w, 1)
	if err != nil {
		return err
	}
	defer c.free()
	hash := sha256.New()
	for i := range w.index.sums {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := c.read(i, true)
		if err != nil {
			return err
		}
		hash.Write(data)
	}
	if [sha256.Size]byte(hash.Sum(nil)) != w.index.digest {
		return fmt.Errorf("%w: content hash", ErrDamaged)
	}
	return nil
}

// buffer is page-aligned memory outside of Go's heap, as direct reads need it.
type buffer struct{ mem []byte }

func newBuffer(size int) (*buffer, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for a buffer: %w", size, err)
	}
	return &buffer{mem}, nil
}

func (b *buffer) free() { _ = unix.Munmap(b.mem) }
