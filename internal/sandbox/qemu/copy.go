package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/skep-dev/skep/internal/pager"
)

// copyChunk is how much memory is looked at in one go.
const copyChunk = 1 << 20

var zeroPage = make([]byte, pageSize)

// apply writes the layers, newest first, over what the mapping shows.
func (r *ram) apply(layers []pager.Layer) error {
	buf := make([]byte, copyChunk)
	for i := len(layers) - 1; i >= 0; i-- {
		for _, e := range layers[i].Extents {
			for done := int64(0); done < e.Length; {
				p := buf[:min(copyChunk, e.Length-done)]
				if _, err := layers[i].Reader.ReadAt(p, e.FileOffset+done); err != nil {
					return fmt.Errorf("read a layer of the guest's memory: %w", err)
				}
				if err := r.write(p, e.Offset+done); err != nil {
					return err
				}
				done += int64(len(p))
			}
		}
	}
	return nil
}

// copyShared copies the memory of a machine that was booted: holes stay holes,
// and pages of zeros become some.
func copyShared(ctx context.Context, to, memory *os.File, size int64) error {
	l, err := pager.SparseLayer(memory)
	if err != nil {
		return err
	}
	w := sparseWriter{f: to}
	buf := make([]byte, copyChunk)
	for _, e := range l.Extents {
		for done := int64(0); done < e.Length; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			p := buf[:min(copyChunk, e.Length-done)]
			if _, err := memory.ReadAt(p, e.FileOffset+done); err != nil {
				return fmt.Errorf("read guest memory: %w", err)
			}
			if err := w.write(p, e.Offset+done, func(page []byte, _ int64) bool { return !bytes.Equal(page, zeroPage) }); err != nil {
				return err
			}
			done += int64(len(p))
		}
	}
	return to.Truncate(size)
}

// copyChanged copies the pages that differ from the image's.
func (r *ram) copyChanged(ctx context.Context, to *os.File, image io.ReaderAt) error {
	w := sparseWriter{f: to}
	was := make([]byte, copyChunk)
	err := r.eachOwn(ctx, func(p []byte, offset int64) error {
		was := was[:len(p)]
		if _, err := image.ReadAt(was, offset); err != nil {
			return fmt.Errorf("read the image: %w", err)
		}
		// Also pages that have become zeros: as a hole they would show the
		// image's.
		return w.write(p, offset, func(page []byte, at int64) bool {
			at -= offset
			return !bytes.Equal(page, was[at:at+pageSize])
		})
	})
	if err != nil {
		return err
	}
	return to.Truncate(r.size)
}

// copyWhole copies all memory: the image's, and what has changed since.
func (r *ram) copyWhole(ctx context.Context, to *os.File, image pager.Source) error {
	own, err := r.private()
	if err != nil {
		return err
	}
	w := sparseWriter{f: to}
	buf := make([]byte, copyChunk)
	for offset := int64(0); offset < r.size; offset += copyChunk {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := buf[:min(copyChunk, r.size-offset)]
		mine := own[offset/pageSize : (offset+int64(len(p)))/pageSize]
		if err := r.chunk(p, offset, mine, image); err != nil {
			return err
		}
		if err := w.write(p, offset, func(page []byte, _ int64) bool { return !bytes.Equal(page, zeroPage) }); err != nil {
			return err
		}
	}
	return to.Truncate(r.size)
}

// chunk reads a piece of memory: from the image, as far as it is still there.
func (r *ram) chunk(p []byte, offset int64, own []bool, image pager.Source) error {
	if image.Zero(offset, int64(len(p))) {
		clear(p)
	} else if _, err := image.ReadAt(p, offset); err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	return eachRun(own, func(first, n int) error {
		at := first * pageSize
		return r.read(p[at:at+n*pageSize], offset+int64(at))
	})
}

// eachOwn calls f with the guest's own pages, in pieces of at most copyChunk.
func (r *ram) eachOwn(ctx context.Context, f func(p []byte, offset int64) error) error {
	own, err := r.private()
	if err != nil {
		return err
	}
	buf := make([]byte, copyChunk)
	return eachRun(own, func(first, n int) error {
		for n > 0 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			p := buf[:min(n*pageSize, copyChunk)]
			if err := r.read(p, int64(first)*pageSize); err != nil {
				return err
			}
			if err := f(p, int64(first)*pageSize); err != nil {
				return err
			}
			first, n = first+len(p)/pageSize, n-len(p)/pageSize
		}
		return nil
	})
}

// eachRun calls f for every run of true.
func eachRun(set []bool, f func(first, n int) error) error {
	for i := 0; i < len(set); i++ {
		if !set[i] {
			continue
		}
		first := i
		for i < len(set) && set[i] {
			i++
		}
		if err := f(first, i-first); err != nil {
			return err
		}
	}
	return nil
}

// sparseWriter writes the pages that are wanted, as few calls as possible.
type sparseWriter struct{ f *os.File }

func (w sparseWriter) write(p []byte, offset int64, want func(page []byte, offset int64) bool) error {
	set := make([]bool, len(p)/pageSize)
	for i := range set {
		set[i] = want(p[i*pageSize:(i+1)*pageSize], offset+int64(i)*pageSize)
	}
	return eachRun(set, func(first, n int) error {
		_, err := w.f.WriteAt(p[first*pageSize:(first+n)*pageSize], offset+int64(first)*pageSize)
		return err
	})
}
