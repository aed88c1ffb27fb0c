package saved

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
)

func TestOpenMemory(t *testing.T) {
	t.Parallel()
	dir := func(size int64) string {
		d := t.TempDir()
		path := filepath.Join(d, sandbox.FileMemory)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	small, large := dir(4096), dir(8192)
	m, err := OpenMemory([]string{large, large, small})
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
	if _, err := OpenMemory([]string{small, large}); err == nil || !strings.Contains(err.Error(), large) {
		t.Errorf("a shorter memory on a longer one: %v", err)
	}
	if _, err := OpenMemory([]string{small, t.TempDir()}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder without memory: %v", err)
	}
	if _, err := OpenMemory(nil); err == nil {
		t.Error("no folders: no error")
	}
}
