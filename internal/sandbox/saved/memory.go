// Package saved opens what a snapshot has of a sandbox: for drivers, which
// restore it, and for the node, which makes one of several.
package saved

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Memory is [sandbox.FileMemory] of each of an image's folders, open to be read.
type Memory struct {
	Files []*os.File // the newest first
	Sizes []int64    // likewise, in bytes; none is larger than the one before
}

// OpenMemory opens the memory in all folders of an image, the newest first.
func OpenMemory(dirs []string) (_ *Memory, err error) {
	if len(dirs) == 0 {
		return nil, errors.New("a snapshot of no folders")
	}
	m := &Memory{}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	for n, dir := range dirs {
		f, err := os.Open(filepath.Join(dir, sandbox.FileMemory))
		if err != nil {
			return nil, err
		}
		m.Files = append(m.Files, f)
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if n > 0 && info.Size() > m.Sizes[n-1] {
			return nil, fmt.Errorf("%s has %d bytes, and the newer %s %d", f.Name(), info.Size(), m.Files[n-1].Name(), m.Sizes[n-1])
		}
		m.Sizes = append(m.Sizes, info.Size())
	}
	return m, nil
}

// Whole is what the files make up together.
func (m *Memory) Whole() (*pager.Layered, error) {
	layers, err := pager.SparseLayers(m.Files)
	if err != nil {
		return nil, err
	}
	return pager.NewLayered(m.Sizes[0], layers...)
}

// Close closes the files. It may be called again.
func (m *Memory) Close() error {
	var errs []error
	for _, f := range m.Files {
		errs = append(errs, f.Close())
	}
	m.Files = nil
	return errors.Join(errs...)
}
