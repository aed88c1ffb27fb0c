package microvm

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/saved"
)

// Image is the memory that a restored machine began with.
type Image struct {
	*saved.Memory
	Layers []pager.Layer  // of the files, likewise
	Source *pager.Layered // all layers as one
}

// OpenImage opens the layers of a memory of size bytes.
func OpenImage(i sandbox.Image, size int64) (_ *Image, err error) {
	m, err := saved.OpenMemory(i.Dirs)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	for n, f := range m.Files {
		if m.Sizes[n] != size {
			return nil, fmt.Errorf("%w: %s has %d bytes, and the machine %d", ErrDamaged, f.Name(), m.Sizes[n], size)
		}
	}
	layers, err := pager.SparseLayers(m.Files)
	if err != nil {
		return nil, err
	}
	all, err := pager.NewLayered(size, layers...)
	if err != nil {
		return nil, err
	}
	return &Image{m, layers, all}, nil
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
