package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// image is the memory that a restored machine began with.
type image struct {
	files  []*os.File // one a layer, newest first
	source *pager.Layered
}

// openImage opens the layers of a memory of size bytes.
func openImage(i sandbox.Image, size int64) (_ *image, err error) {
	img := &image{}
	defer func() {
		if err != nil {
			err = errors.Join(err, img.close())
		}
	}()
	var layers []pager.Layer
	for _, dir := range i.Dirs {
		f, err := os.Open(filepath.Join(dir, sandbox.FileMemory))
		if err != nil {
			return nil, err
		}
		img.files = append(img.files, f)
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if st.Size() != size {
			return nil, fmt.Errorf("%w: %s has %d bytes, and the machine %d", errDamaged, f.Name(), st.Size(), size)
		}
		l, err := pager.SparseLayer(f)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	img.source, err = pager.NewLayered(size, layers...)
	return img, err
}

func (i *image) close() error {
	var errs []error
	for _, f := range i.files {
		errs = append(errs, f.Close())
	}
	i.files = nil
	return errors.Join(errs...)
}

// block is how much memory is handled at once, in bytes.
const block = 1 << 20

// flatten writes all layers as one file.
func (i *image) flatten(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size := i.source.Size()
	if err := f.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, block)
	for at := int64(0); at < size; at += block {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(block, size-at)
		if i.source.Zero(at, n) {
			continue
		}
		if _, err := i.source.ReadAt(buf[:n], at); err != nil {
			return err
		}
		if _, err := f.WriteAt(buf[:n], at); err != nil {
			return err
		}
	}
	return nil
}

// hint has the kernel read a working set ahead from the file that will be
// mapped.
func hint(f *os.File, workingSet string) error {
	ws, err := pager.OpenWorkingSet(workingSet, false)
	if err != nil {
		return err
	}
	defer ws.Close() //nolint:errcheck // read only
	unit := int64(ws.PageSize())
	pages := ws.Recording().Pages
	slices.Sort(pages)
	for len(pages) > 0 {
		n := 1
		for n < len(pages) && pages[n] == pages[n-1]+1 {
			n++
		}
		if err := unix.Fadvise(int(f.Fd()), int64(pages[0])*unit, int64(n)*unit, unix.FADV_WILLNEED); err != nil {
			return fmt.Errorf("read ahead: %w", err)
		}
		pages = pages[n:]
	}
	return nil
}

// thin makes holes in a memory file of what need not be there: pages that are
// zero, or, for the difference from base, the same as there.
func thin(ctx context.Context, f *os.File, base pager.Source) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	zero := make([]byte, pager.PageSize)
	buf, old := make([]byte, block), make([]byte, block)
	for at := int64(0); at < info.Size(); at += block {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(block, info.Size()-at)
		if _, err := f.ReadAt(buf[:n], at); err != nil {
			return err
		}
		if base != nil {
			if _, err := base.ReadAt(old[:n], at); err != nil {
				return err
			}
		}
		// Runs of pages that go.
		start := int64(-1)
		for p := int64(0); p <= n; p += pager.PageSize {
			goes := false
			if p < n {
				want := zero
				if base != nil {
					want = old[p : p+pager.PageSize]
				}
				goes = bytes.Equal(buf[p:p+pager.PageSize], want)
			}
			switch {
			case goes && start < 0:
				start = p
			case !goes && start >= 0:
				const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
				if err := unix.Fallocate(int(f.Fd()), mode, at+start, p-start); err != nil {
					return fmt.Errorf("make a hole in %s: %w", f.Name(), err)
				}
				start = -1
			}
		}
	}
	return nil
}
