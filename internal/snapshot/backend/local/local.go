// Package local is a backend in a folder of this machine: one file per object,
// fanned out over sub-folders, written so that a crash at any moment leaves
// whole objects only.
package local

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// tmpDir holds half-written files where the file system cannot make nameless
// ones. It begins with a dot, as no object's name can.
const tmpDir = ".tmp"

// staleAfter is the age at which a half-written file is surely nobody's.
const staleAfter = 24 * time.Hour

// Options of a folder.
type Options struct {
	// NoSync leaves out fsync: for caches and tests, whose loss in a power
	// failure does no harm.
	NoSync bool
	// Volatile, when set, leaves fsync out for the names it says yes to.
	Volatile func(name string) bool
	// NamedTemp writes into named temporary files even where nameless ones
	// (O_TMPFILE, which vanish with their process) are possible.
	NamedTemp bool
}

// Backend keeps objects as files below a folder.
type Backend struct {
	dir  string
	opts Options
}

var _ backend.Backend = (*Backend)(nil)

// Open uses the folder dir, which it makes when it is missing, and removes
// half-written files that are older than a day.
func Open(dir string, opts Options) (*Backend, error) {
	if err := os.MkdirAll(filepath.Join(dir, tmpDir), 0o700); err != nil {
		return nil, fmt.Errorf("making the snapshot folder %s: %w", dir, err)
	}
	b := &Backend{dir: dir, opts: opts}
	if err := b.removeStale(time.Now().Add(-staleAfter)); err != nil {
		return nil, err
	}
	return b, nil
}

// OpenReadable uses a folder that is there, and makes and removes nothing in
// it. Objects can be put into it all the same where its permissions allow it and
// it was opened by Open before.
func OpenReadable(dir string) (*Backend, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("the snapshot folder: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("the snapshot folder %s is no folder", dir)
	}
	return &Backend{dir: dir, opts: Options{NoSync: true}}, nil
}

func (b *Backend) removeStale(before time.Time) error {
	entries, err := os.ReadDir(filepath.Join(b.dir, tmpDir))
	if err != nil {
		return fmt.Errorf("looking for half-written objects: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.ModTime().After(before) {
			continue // gone meanwhile, or somebody may be writing it
		}
		if err := os.Remove(filepath.Join(b.dir, tmpDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing a half-written object: %w", err)
		}
	}
	return nil
}

// path maps a/b/c to DIR/a/b/.XX/c, where XX fans c out over 256 folders. Names
// with a dot are taken to be few and listed often: they share one folder.
func (b *Backend) path(name string) string {
	dir, base := filepath.Split(name)
	if strings.Contains(base, ".") {
		return filepath.Join(b.dir, dir, ".xx", base)
	}
	h := fnv.New32a()
	_, _ = io.WriteString(h, base) // never fails, see hash.Hash
	return filepath.Join(b.dir, dir, fmt.Sprintf(".%02x", byte(h.Sum32())), base)
}

// Get implements backend.Backend.
func (b *Backend) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := backend.CheckName(name); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	f, err := os.Open(b.path(name))
	if err != nil {
		return nil, named(name, err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, named(name, err)
	}
	n, err := backend.CheckRange(name, st.Size(), offset, length)
	if err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, named(name, err)
	}
	return backend.ExactReader(ctx, f, n), nil
}

// Stat implements backend.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (backend.Info, error) {
	if err := backend.CheckName(name); err != nil {
		return backend.Info{}, err
	}
	if err := context.Cause(ctx); err != nil {
		return backend.Info{}, err
	}
	st, err := os.Stat(b.path(name))
	if err != nil {
		return backend.Info{}, named(name, err)
	}
	return backend.Info{Name: name, Size: st.Size(), Modified: st.ModTime()}, nil
}

// List implements backend.Backend.
func (b *Backend) List(ctx context.Context, prefix string, fn func(backend.Info) error) error {
	if err := backend.CheckPrefix(prefix); err != nil {
		return err
	}
	// Everything that matches lies below the prefix's last whole folder.
	root := filepath.Join(b.dir, filepath.FromSlash(prefix[:strings.LastIndexByte(prefix, '/')+1]))
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile, or nothing of that kind was ever put
		}
		if err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == tmpDir {
				return fs.SkipDir
			}
			return nil
		}
		name, ok := b.nameOf(path)
		if !ok || !strings.HasPrefix(name, prefix) {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return fn(backend.Info{Name: name, Size: info.Size(), Modified: info.ModTime()})
	})
	if err != nil {
		return fmt.Errorf("listing objects %s*: %w", prefix, err)
	}
	return context.Cause(ctx)
}

// nameOf is the reverse of path; files that are no objects are told apart.
func (b *Backend) nameOf(path string) (string, bool) {
	rel, err := filepath.Rel(b.dir, path)
	if err != nil {
		return "", false
	}
	dir, base := filepath.Split(filepath.ToSlash(rel))
	dir, fan := filepath.Split(strings.TrimSuffix(dir, "/"))
	if len(fan) != 3 || fan[0] != '.' {
		return "", false
	}
	name := dir + base
	return name, backend.CheckName(name) == nil && b.path(name) == path
}

// Delete implements backend.Backend.
func (b *Backend) Delete(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := os.Remove(b.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deleting object %s: %w", name, err)
	}
	return nil
}

// named gives an operating system's error the object's name and our kind.
func named(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("object %s: %w", name, backend.ErrNotExist)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("object %s: %w", name, backend.ErrExist)
	}
	return fmt.Errorf("object %s: %w", name, err)
}
