package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Put implements backend.Backend: the bytes go into a file without a name
// (or with a temporary one), to the disk, and only then get their name by
// link(2), which unlike rename(2) refuses a name that is taken.
func (b *Backend) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if size < 1 {
		return fmt.Errorf("%w: %s: %d bytes", backend.ErrSize, name, size)
	}
	target := b.path(name)
	if _, err := os.Lstat(target); err == nil {
		return fmt.Errorf("object %s: %w", name, backend.ErrExist)
	}
	if err := b.makeDir(filepath.Dir(target)); err != nil {
		return fmt.Errorf("object %s: making its folder: %w", name, err)
	}
	f, linkFrom, err := b.temp()
	if err != nil {
		return fmt.Errorf("object %s: making a temporary file: %w", name, err)
	}
	defer f.Close()
	if linkFrom == f.Name() {
		defer os.Remove(linkFrom)
	}
	if _, err := io.Copy(onlyWriter{f}, backend.SizedReader(ctx, name, r, size)); err != nil {
		return fmt.Errorf("writing object %s: %w", name, err)
	}
	sync := !b.opts.NoSync && (b.opts.Volatile == nil || !b.opts.Volatile(name))
	if sync {
		if err := f.Sync(); err != nil {
			return fmt.Errorf("writing object %s to the disk: %w", name, err)
		}
	}
	if err := unix.Linkat(unix.AT_FDCWD, linkFrom, unix.AT_FDCWD, target, unix.AT_SYMLINK_FOLLOW); err != nil {
		return named(name, err)
	}
	if !sync {
		return nil
	}
	return b.syncDir(filepath.Dir(target))
}

// onlyWriter hides *os.File's ReadFrom, which would look behind the reader
// that checks the size.
type onlyWriter struct{ io.Writer }

// temp makes the file to write into and says by which path to link it.
func (b *Backend) temp() (*os.File, string, error) {
	dir := filepath.Join(b.dir, tmpDir)
	if !b.opts.NamedTemp {
		f, err := os.OpenFile(dir, os.O_WRONLY|unix.O_TMPFILE, 0o600)
		if err == nil {
			return f, "/proc/self/fd/" + strconv.Itoa(int(f.Fd())), nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
			return nil, "", err
		}
	}
	f, err := os.CreateTemp(dir, "put-")
	if err != nil {
		return nil, "", err
	}
	return f, f.Name(), nil
}

// makeDir makes a folder and its parents below the root, lastingly.
func (b *Backend) makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case err == nil:
		return b.syncDir(filepath.Dir(dir))
	case errors.Is(err, os.ErrExist):
		return nil
	case !errors.Is(err, os.ErrNotExist) || dir == b.dir:
		return err
	}
	if err := b.makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	return b.makeDir(dir)
}

// syncDir makes names in a folder last. Where it fails after a link the object
// may exist, as Backend.Put allows.
func (b *Backend) syncDir(dir string) error {
	if b.opts.NoSync {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("writing the folder %s to the disk: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("writing the folder %s to the disk: %w", dir, err)
	}
	return nil
}
