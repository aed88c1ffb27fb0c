package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Files of a snapshot, beside the contract's two: the state, which is
// gVisor's kernel, and the memory, see type memory.
const (
	fileRanges = "ranges" // gVisor's description of the memory
	fileIndex  = "index"  // JSON, see index
)

// maxIndex bounds the index, in bytes.
const maxIndex = 64 << 10

// imageFormat is the version of how a snapshot lies in its folder.
const imageFormat = 3

// imageFiles are a snapshot's files, with gVisor's names for them, in the
// order in which gVisor takes their descriptors.
var imageFiles = []struct{ name, gvisor string }{
	{sandbox.FileState, checkpointfiles.StateFileName},
	{fileRanges, checkpointfiles.PagesMetadataFileName},
	{sandbox.FileMemory, checkpointfiles.PagesFileName},
}

// index says what belongs to a snapshot. gVisor itself would notice a short
// memory file only when the function already runs, and kill it.
type index struct {
	Format  int
	Version string           // of gVisor
	ID      string           // of this snapshot
	Base    string           `json:",omitempty"` // ID of the one that it is a difference from
	Sizes   map[string]int64 // by file name, in bytes
	Pages   int64            // bytes of all pages, also of those that only the base has
	Mounts  []mounted        `json:",omitempty"`
}

// image is the files of a snapshot that is being made.
type image struct {
	dir                          string
	state, ranges, memory, saved *os.File // saved has no name, see parseRanges
}

// createImage makes the files of a snapshot in dir, empty.
func createImage(dir string) (_ *image, err error) {
	i := &image{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.close(), removeImage(dir))
		}
	}()
	if i.saved, err = os.CreateTemp(dir, "pages-"); err != nil {
		return nil, err
	}
	if err := os.Remove(i.saved.Name()); err != nil {
		return nil, err
	}
	for name, f := range map[string]**os.File{sandbox.FileState: &i.state, fileRanges: &i.ranges, sandbox.FileMemory: &i.memory} {
		if *f, err = os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// files are those that gVisor writes, in its order.
func (i *image) files() []*os.File { return []*os.File{i.state, i.ranges, i.saved} }

func (i *image) close() error {
	var errs []error
	for _, f := range []*os.File{i.state, i.ranges, i.saved, i.memory} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// removeImage removes the files of a snapshot that failed.
func removeImage(dir string) error {
	var errs []error
	for _, name := range []string{fileIndex, sandbox.FileState, fileRanges, sandbox.FileMemory} {
		if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// writeIndex completes a snapshot whose files are in dir.
func writeIndex(dir string, x index) error {
	x.Format, x.Version, x.Sizes = imageFormat, Version(), map[string]int64{}
	for _, f := range imageFiles {
		fi, err := os.Stat(filepath.Join(dir, f.name))
		if err != nil {
			return err
		}
		x.Sizes[f.name] = fi.Size()
	}
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fileIndex), b, 0o600)
}

// checkImage says if the folders, the newest first, hold a whole snapshot that
// was made by this version of gVisor. It returns the newest one's index.
func checkImage(dirs []string) (*index, error) {
	x, err := readIndex(dirs[0])
	if err != nil {
		return nil, err
	}
	for _, f := range imageFiles {
		if err := checkSize(dirs[0], f.name, x.Sizes[f.name]); err != nil {
			return nil, err
		}
	}
	upper := x
	for i, dir := range dirs[1:] {
		// Only the memory must be there.
		lower, err := readIndex(dir)
		if errors.Is(err, fs.ErrNotExist) {
			lower = &index{}
			_, err = os.Stat(filepath.Join(dir, sandbox.FileMemory))
		} else if err == nil {
			err = checkSize(dir, sandbox.FileMemory, lower.Sizes[sandbox.FileMemory])
		}
		if err != nil {
			return nil, err
		}
		if lower.ID != "" && upper.ID != "" && upper.Base != lower.ID {
			return nil, fmt.Errorf("snapshot %s is not a difference from %s", dirs[i], dir)
		}
		upper = lower
	}
	if len(dirs) == 1 && x.Base != "" {
		return x, checkAlone(dirs[0], x)
	}
	return x, nil
}

func checkSize(dir, name string, want int64) error {
	fi, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() != want {
		return fmt.Errorf("snapshot %s: %s is damaged: %d bytes instead of %d", dir, name, fi.Size(), want)
	}
	return nil
}

// checkAlone tells a difference whose memory has been filled up with that of
// what it was made from, as by a store, from one that has not: it has all pages.
func checkAlone(dir string, x *index) error {
	f, err := os.Open(filepath.Join(dir, sandbox.FileMemory))
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer f.Close()
	l, err := pager.SparseLayer(f)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	var have int64
	for _, e := range l.Extents {
		have += e.Length
	}
	if have < x.Pages {
		return fmt.Errorf("snapshot %s is a difference: it has %d bytes of %d, and needs the folder of snapshot %s", dir, have, x.Pages, x.Base)
	}
	return nil
}

// readIndex reads the index in a folder.
func readIndex(dir string) (*index, error) {
	f, err := os.Open(filepath.Join(dir, fileIndex))
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	x, err := parseIndex(b)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %s is damaged: %w", dir, fileIndex, err)
	}
	switch {
	case x.Format != imageFormat:
		return nil, fmt.Errorf("snapshot %s has format %d, this is %d: make a new one", dir, x.Format, imageFormat)
	case x.Version != Version():
		return nil, fmt.Errorf("snapshot %s was made by gVisor %s, this is %s: make a new one", dir, x.Version, Version())
	}
	return x, nil
}

// parseIndex reads an index.
func parseIndex(b []byte) (*index, error) {
	if len(b) > maxIndex {
		return nil, errors.New("too long")
	}
	x := new(index)
	if err := json.Unmarshal(b, x); err != nil {
		return nil, err
	}
	for _, f := range imageFiles {
		if x.Sizes[f.name] <= 0 {
			return nil, fmt.Errorf("no size of %s", f.name)
		}
	}
	if x.Pages < 0 || x.Format >= imageFormat && x.ID == "" {
		return nil, errors.New("no ID, or no number of pages")
	}
	for _, m := range x.Mounts {
		if m.Disk < 0 || !strings.HasPrefix(m.Target, "/") {
			return nil, fmt.Errorf("disk %d at %q", m.Disk, m.Target)
		}
	}
	return x, nil
}
