package microvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Image is the memory that a restored machine began with.
type Image struct {
	Files  []*os.File     // one a layer, newest first
	Layers []pager.Layer  // likewise
	Source *pager.Layered // all layers as one
}

// OpenImage opens the layers of a memory of size bytes.
func OpenImage(i sandbox.Image, size int64) (_ *Image, err error) {
	img := &Image{}
	defer func() {
		if err != nil {
			err = errors.Join(err, img.Close())
		}
	}()
	for _, dir := range i.Dirs {
		f, err := os.Open(filepath.Join(dir, sandbox.FileMemory))
		if err != nil {
			return nil, err
		}
		img.Files = append(img.Files, f)
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if st.Size() != size {
			return nil, fmt.Errorf("%w: %s has %d bytes, and the machine %d", ErrDamaged, f.Name(), st.Size(), size)
		}
		l, err := pager.SparseLayer(f)
		if err != nil {
			return nil, err
		}
		img.Layers = append(img.Layers, l)
	}
	img.Source, err = pager.NewLayered(size, img.Layers...)
	return img, err
}

// Close closes the files. It may be called again.
func (i *Image) Close() error {
	var errs []error
	for _, f := range i.Files {
		errs = append(errs, f.Close())
	}
	i.Files = nil
	return errors.Join(errs...)
}

// smallGap is how many pages between two of a working set are read with them:
// that costs less than to ask once more.
const smallGap = 8

// ReadAhead has the kernel read a working set ahead from the file that will be
// mapped.
func ReadAhead(f *os.File, workingSet string) error {
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
		for n < len(pages) && pages[n]-pages[n-1] <= 1+smallGap {
			n++
		}
		size := int64(pages[n-1]-pages[0]+1) * unit
		if err := unix.Fadvise(int(f.Fd()), int64(pages[0])*unit, size, unix.FADV_WILLNEED); err != nil {
			return fmt.Errorf("read ahead: %w", err)
		}
		pages = pages[n:]
	}
	return nil
}
