package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

var _ sandbox.Saver = (*box)(nil)

// Save makes a snapshot. The machine stands still while Firecracker writes its
// memory.
func (b *box) Save(ctx context.Context, o sandbox.SaveOptions) error {
	if err := b.Running(); err != nil {
		return err
	}
	if o.Diff && b.image == nil {
		return fmt.Errorf("firecracker: sandbox %s: a diff needs a sandbox that was restored: %w", b.Spec.ID, sandbox.ErrUnsupported)
	}
	if err := microvm.Lock(ctx, b.saving); err != nil {
		return err
	}
	defer microvm.Unlock(b.saving)
	// The folder must be there before the machine stops for it.
	_, err := os.Stat(o.Dir)
	if err == nil {
		err = b.save(ctx, o)
	}
	if err == nil {
		return nil
	}
	for _, name := range []string{sandbox.FileMemory, sandbox.FileState} {
		err = errors.Join(err, remove(b.jail.path(filepath.Join(saveDir, name))), remove(filepath.Join(o.Dir, name)))
	}
	err = errors.Join(err, remove(filepath.Join(o.Dir, fileMachine)))
	if gone := b.Running(); gone != nil {
		return gone
	}
	return fmt.Errorf("firecracker: save sandbox %s: %w", b.Spec.ID, err)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// kind says what Firecracker is to write, and what of that is to be taken out
// again: pages as in base, or zero ones, or nothing.
//
// What Firecracker calls a difference is what was written since it last made a
// snapshot, or since the machine was loaded or booted. So only the first is
// the difference that is wanted here; of a machine that was booted it is all
// that is not zero.
func (b *box) kind(diff bool) (kind fcapi.SnapshotType, base pager.Source, thinned bool) {
	first := !b.saved
	switch {
	case b.image == nil && first:
		return fcapi.Diff, nil, false
	case diff && first:
		return fcapi.Diff, nil, false
	case diff:
		return fcapi.Full, b.image.source, true
	default:
		return fcapi.Full, nil, true
	}
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
	kind, base, thinned := b.kind(o.Diff)
	var marks agent.Marks
	token, marks, err := b.Suspend(ctx)
	if err == nil {
		err = b.freeze(ctx, kind)
	}
	// The agent first: whoever waits for the sandbox waits for it.
	if err = errors.Join(err, b.Reconnect(ctx)); err != nil {
		return err
	}
	for _, name := range []string{sandbox.FileMemory, sandbox.FileState} {
		if err := b.take(name, o.Dir); err != nil {
			return err
		}
	}
	if thinned {
		if err := thinFile(ctx, filepath.Join(o.Dir, sandbox.FileMemory), base); err != nil {
			return err
		}
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
func (b *box) freeze(ctx context.Context, kind fcapi.SnapshotType) (err error) {
	if err := b.vm.api.SetState(ctx, fcapi.Paused); err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		if rerr := b.vm.api.SetState(clean, fcapi.Resumed); rerr != nil {
			b.vm.fail(rerr) // so that Wait returns
			err = errors.Join(err, rerr)
		}
	}()
	b.saved = true // even if it fails: what was written is forgotten then, too
	return b.vm.api.CreateSnapshot(ctx, fcapi.SnapshotCreate{
		Type: kind, MemoryPath: filepath.Join(saveDir, sandbox.FileMemory), StatePath: filepath.Join(saveDir, sandbox.FileState),
	})
}

// take moves a file that Firecracker wrote to a folder of ours. Monitors of
// restored machines read it as users of their own.
func (b *box) take(name, dir string) error {
	// It is Firecracker's: a link in its place must lead nowhere.
	fd, err := unix.Open(b.jail.path(filepath.Join(saveDir, name)), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("snapshot file %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("snapshot file %s is none", name)
	}
	if err := errors.Join(f.Chown(0, 0), f.Chmod(0o644)); err != nil {
		return err
	}
	from, to := b.jail.path(filepath.Join(saveDir, name)), filepath.Join(dir, name)
	if err := os.Rename(from, to); !errors.Is(err, unix.EXDEV) {
		if err == nil {
			err = f.Sync()
		}
		return err
	}
	if err := copySparse(f, to, info.Size()); err != nil {
		return err
	}
	return os.Remove(from)
}

// copySparse copies a file with its holes.
func copySparse(from *os.File, to string, size int64) (err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, block)
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = start; at < end; {
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
	return out.Sync()
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
