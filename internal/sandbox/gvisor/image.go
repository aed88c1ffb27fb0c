package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Files of a snapshot, beside the contract's two: the state, which is
// gVisor's kernel, and the memory, which holds one after the other the pages
// that are not zeros.
const (
	fileRanges = "ranges" // where each of the memory's pages belongs
	fileIndex  = "index"  // JSON, see index
)

// maxIndex bounds the index, in bytes.
const maxIndex = 64 << 10

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
	Version string           // of gVisor
	Sizes   map[string]int64 // by file name, in bytes
}

// createImage makes the files of a snapshot in dir, empty, in gVisor's order.
func createImage(dir string) ([]*os.File, error) {
	var files []*os.File
	for _, f := range imageFiles {
		file, err := os.OpenFile(filepath.Join(dir, f.name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.Close(), os.Remove(f.Name()))
			}
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// removeImage removes the files of a snapshot that failed.
func removeImage(dir string) error {
	err := os.Remove(filepath.Join(dir, fileIndex))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, f := range imageFiles {
		err = errors.Join(err, os.Remove(filepath.Join(dir, f.name)))
	}
	return err
}

// writeIndex completes a snapshot whose files are in dir.
func writeIndex(dir string) error {
	x := index{Version: Version(), Sizes: map[string]int64{}}
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

// checkImage says if dir holds a whole snapshot that was made by this
// version of gVisor.
func checkImage(dir string) error {
	f, err := os.Open(filepath.Join(dir, fileIndex))
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	x, err := parseIndex(b)
	if err != nil {
		return fmt.Errorf("snapshot %s: %s is damaged: %w", dir, fileIndex, err)
	}
	if x.Version != Version() {
		return fmt.Errorf("snapshot %s was made by gVisor %s, this is %s: make a new one", dir, x.Version, Version())
	}
	for _, f := range imageFiles {
		fi, err := os.Stat(filepath.Join(dir, f.name))
		if err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		if !fi.Mode().IsRegular() || fi.Size() != x.Sizes[f.name] {
			return fmt.Errorf("snapshot %s: %s is damaged: %d bytes instead of %d", dir, f.name, fi.Size(), x.Sizes[f.name])
		}
	}
	return nil
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
	return x, nil
}
