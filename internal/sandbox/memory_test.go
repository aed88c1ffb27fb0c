package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOpenMemory(t *testing.T) {
	t.Parallel()
	dir := func(size int64) string {
		d := t.TempDir()
		path := filepath.Join(d, FileMemory)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	small, large := dir(4096), dir(8192)
	i := Image{Dirs: []string{large, large, small}}
	m, err := i.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Files) != 3 || !slices.Equal(m.Sizes, []int64{8192, 8192, 4096}) {
		t.Errorf("%d files, of %d bytes", len(m.Files), m.Sizes)
	}
	if whole, err := m.Whole(); err != nil || whole.Size() != 8192 || !whole.Zero(0, 8192) {
		t.Errorf("they make up something else: %v", err)
	}
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Error(err)
	}
	i.Dirs = []string{small, large}
	if _, err := i.OpenMemory(); err == nil || !strings.Contains(err.Error(), large) {
		t.Errorf("a shorter memory on a longer one: %v", err)
	}
	i.Dirs = []string{small, t.TempDir()}
	if _, err := i.OpenMemory(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder without memory: %v", err)
	}
	i.Dirs = nil
	if _, err := i.OpenMemory(); err == nil {
		t.Error("no folders: no error")
	}
}
