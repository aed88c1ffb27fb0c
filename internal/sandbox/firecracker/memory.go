package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

// block is how much memory is handled at once, in bytes.
const block = 1 << 20

// flatten writes all layers as one file.
func flatten(ctx context.Context, image pager.Source, path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size := image.Size()
	if err := f.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, block)
	for at := int64(0); at < size; at += block {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(block, size-at)
		if image.Zero(at, n) {
			continue
		}
		if _, err := image.ReadAt(buf[:n], at); err != nil {
			return err
		}
		if _, err := f.WriteAt(buf[:n], at); err != nil {
			return err
		}
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
