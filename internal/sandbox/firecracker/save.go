package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

var _ sandbox.Saver = (*box)(nil)

// Save makes a snapshot. The machine stands still while Firecracker writes its
// memory.
func (b *box) Save(ctx context.Context, o sandbox.SaveOptions) error {
	return b.Snapshot(ctx, o, []string{sandbox.FileMemory, sandbox.FileState, fileMachine}, func(ctx context.Context) error {
		err := b.save(ctx, o)
		if err != nil {
			err = errors.Join(err, remove(b.written(sandbox.FileMemory)), remove(b.written(sandbox.FileState)))
		}
		return err
	})
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (b *box) save(ctx context.Context, o sandbox.SaveOptions) error {
	version, err := b.d.firecrackerVersion(ctx)
	if err != nil {
		return err
	}
	m, err := b.d.describe(b, version)
	if err != nil {
		return err
	}
	token, marks, err := b.Suspended(ctx, func() error { return b.freeze(ctx) })
	if err != nil {
		return err
	}
	memory, err := b.take(sandbox.FileMemory)
	if err != nil {
		b.lost = true
		return err
	}
	whole := b.lost // it was written whole, and so is no history
	if whole {
		defer memory.Close() //nolint:errcheck // its content has been moved
	} else {
		b.history = append(b.history, memory)
	}
	if err := b.writeMemory(ctx, memory, filepath.Join(o.Dir, sandbox.FileMemory), o.Diff, whole); err != nil {
		return err
	}
	f, err := b.take(sandbox.FileState)
	if err != nil {
		return err
	}
	err = place(f, b.written(sandbox.FileState), filepath.Join(o.Dir, sandbox.FileState))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	state, err := readBounded(filepath.Join(o.Dir, sandbox.FileState), maxState)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(state)
	m.Token, m.Marks, m.StateSHA256 = token[:], marks, hex.EncodeToString(sum[:])
	return m.write(filepath.Join(o.Dir, fileMachine))
}

// freeze stops the machine, has Firecracker write a snapshot, and has the
// machine go on.
//
// What Firecracker calls a difference is what was written since it last made a
// snapshot, or since the machine was loaded or booted: of a machine that was
// booted, all that is not zero. Together, the differences are what is wanted.
// All of a machine's memory it writes only if one of them was lost: it would
// bring in every page of one that was restored.
func (b *box) freeze(ctx context.Context) (err error) {
	if err := b.vm.api.SetState(ctx, fcapi.Paused); err != nil {
		return err
	}
	defer func() {
		clean, cancel := microvm.CleanUp(ctx)
		defer cancel()
		if rerr := b.vm.api.SetState(clean, fcapi.Resumed); rerr != nil {
			b.vm.Fail(rerr) // so that Wait returns
			err = errors.Join(err, rerr)
		}
	}()
	kind := fcapi.Diff
	if b.lost {
		kind = fcapi.Full
	}
	err = b.vm.api.CreateSnapshot(ctx, fcapi.SnapshotCreate{
		Type: kind, MemoryPath: filepath.Join(saveDir, sandbox.FileMemory), StatePath: filepath.Join(saveDir, sandbox.FileState),
	})
	if err != nil {
		b.lost = true // Firecracker may have forgotten what it did not write
	}
	return err
}

// written is a file that Firecracker has written.
func (b *box) written(name string) string { return b.jail.path(filepath.Join(saveDir, name)) }

// take makes a file that Firecracker wrote ours. Monitors of restored machines
// read it as users of their own.
func (b *box) take(name string) (*os.File, error) {
	// A link in its place must lead nowhere.
	fd, err := unix.Open(b.written(name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("snapshot file %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err == nil {
		err = errors.Join(f.Chown(0, 0), f.Chmod(0o644))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot file %s: %w", name, err), f.Close())
	}
	return f, nil
}

// writeMemory writes the memory file of a snapshot: what has changed since the
// image that the machine was restored from, or everything.
func (b *box) writeMemory(ctx context.Context, f *os.File, to string, diff, whole bool) error {
	from := b.written(sandbox.FileMemory)
	if whole {
		if err := place(f, from, to); err != nil {
			return err
		}
		if diff {
			return thinFile(ctx, to, b.image.Source)
		}
		return thinFile(ctx, to, nil)
	}
	var layers []*os.File // oldest first
	if b.image != nil && !diff {
		layers = slices.Clone(b.image.Files)
		slices.Reverse(layers)
	}
	layers = append(layers, b.history...)
	if len(layers) == 1 {
		if err := place(f, from, to); err != nil {
			return err
		}
	} else {
		if err := merge(ctx, layers, to); err != nil {
			return err
		}
		if err := os.Remove(from); err != nil {
			return err
		}
	}
	if diff && !b.d.tracks() {
		// Firecracker wrote what was there, changed or not.
		return thinFile(ctx, to, b.image.Source)
	}
	return nil
}

// place moves an open file to another path, in another file system if need be.
func place(f *os.File, from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, unix.EXDEV) {
		if err = merge(context.Background(), []*os.File{f}, to); err == nil {
			err = os.Remove(from)
		}
		return err
	}
	if err != nil {
		return err
	}
	return f.Sync()
}

// merge writes a sparse file with the data of files of the same length, those
// of later ones over those of earlier ones.
func merge(ctx context.Context, layers []*os.File, to string) (err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	info, err := layers[0].Stat()
	if err == nil {
		err = out.Chmod(0o644) // whatever the process's mask: see take
	}
	if err == nil {
		err = out.Truncate(info.Size())
	}
	for _, l := range layers {
		if err == nil {
			err = copyData(ctx, out, l, info.Size())
		}
	}
	if err == nil {
		err = out.Sync()
	}
	return err
}

// copyData copies what is not a hole.
func copyData(ctx context.Context, out, from *os.File, size int64) error {
	buf := make([]byte, block)
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = start; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(block, end-at)
			if _, err := from.ReadAt(buf[:n], at); err != nil {
				return err
			}
			if _, err := out.WriteAt(buf[:n], at); err != nil {
				return err
			}
			at += n
		}
	}
	return nil
}

func thinFile(ctx context.Context, path string, base pager.Source) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := thin(ctx, f, base); err != nil {
		return err
	}
	return f.Sync()
}
