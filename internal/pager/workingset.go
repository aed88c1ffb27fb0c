package pager

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
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

// WriteWorkingSet writes the file at path anew: rec's pages with their content
// from src. Either the whole file appears, on disk, or none; an older one
// stays readable for those who have it open.
func WriteWorkingSet(ctx context.Context, path string, rec Recording, src Source) (err error) {
	fail := func(err error) error { return fmt.Errorf("write working set %s: %w", path, err) }
	x, err := planRuns(ctx, rec, src)
	if err != nil {
		return fail(err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := writeData(ctx, f, x, src); err != nil {
		return fail(err)
	}
	if _, err := f.WriteAt(x.encode(), 0); err != nil {
		return fail(err)
	}
	if err := errors.Join(f.Sync(), f.Chmod(0o600), f.Close()); err != nil {
		return fail(err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fail(err)
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write working set %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// planRuns groups the recording's pages to runs and finds the zero ones.
func planRuns(ctx context.Context, rec Recording, src Source) (*wsIndex, error) {
	if rec.PageSize != PageSize && rec.PageSize != HugePageSize {
		return nil, fmt.Errorf("page size %d is neither %d nor %d", rec.PageSize, PageSize, HugePageSize)
	}
	if len(rec.Pages) > maxWSPages {
		return nil, fmt.Errorf("%d pages, at most %d", len(rec.Pages), maxWSPages)
	}
	x := &wsIndex{pageSize: rec.PageSize}
	size := int64(rec.PageSize)
	page := make([]byte, size)
	for _, p := range rec.Pages {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if p >= uint64(src.Size()/size) {
			return nil, fmt.Errorf("page %d lies outside the image of %d bytes", p, src.Size())
		}
		zero := src.Zero(int64(p)*size, size)
		if !zero {
			if err := readFull(src, page, int64(p)*size); err != nil {
				return nil, err
			}
			zero = allZero(page)
		}
		if n := len(x.runs); n > 0 && x.runs[n-1].Zero == zero && x.runs[n-1].Page+uint64(x.runs[n-1].Count) == p {
			x.runs[n-1].Count++
		} else {
			x.runs = append(x.runs, Run{Page: p, Count: 1, Zero: zero})
		}
	}
	all, zero := x.pages()
	x.dataSize = int64(all-zero) * size
	chunk := int64(chunkSize(rec.PageSize))
	x.sums = make([]uint32, roundUp(x.dataSize, chunk)/chunk)
	length := int64(wsHeader + len(x.runs)*wsRunSize + 4*len(x.sums))
	x.dataOffset = roundUp(length, wsAlign)
	if err := x.check(length, x.dataOffset+x.dataSize); err != nil {
		return nil, err
	}
	x.sums = x.sums[:0]
	return x, nil
}

// writeData writes the pages and fills in the sums.
func writeData(ctx context.Context, f *os.File, x *wsIndex, src Source) error {
	if err := f.Truncate(x.dataOffset + x.dataSize); err != nil {
		return err
	}
	hash := sha256.New()
	chunk := make([]byte, 0, chunkSize(x.pageSize))
	at := x.dataOffset
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		x.sums = append(x.sums, crc32.Checksum(chunk, castagnoli))
		hash.Write(chunk)
		_, err := f.WriteAt(chunk, at)
		at += int64(len(chunk))
		chunk = chunk[:0]
		return err
	}
	for _, r := range x.runs {
		if r.Zero {
			continue
		}
		off, rest := int64(r.Page)*int64(x.pageSize), int64(r.Count)*int64(x.pageSize)
		for rest > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(int(min(rest, int64(cap(chunk)))), cap(chunk)-len(chunk))
			if err := readFull(src, chunk[len(chunk):len(chunk)+n], off); err != nil {
				return err
			}
			chunk = chunk[:len(chunk)+n]
			off, rest = off+int64(n), rest-int64(n)
			if len(chunk) == cap(chunk) {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	x.digest = [sha256.Size]byte(hash.Sum(nil))
	return nil
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
