package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// gVisor has no block devices, but it can mount an EROFS image that it is given
// as a file.

// mounted is a disk that is mounted, also in a snapshot: gVisor wants the same
// image again, and its own check ends in a panic.
type mounted struct {
	Disk   int    // index in Spec.Disks
	Target string // clean path
	Bytes  int64  // of the image
	Begin  string // hash of its first beginBytes
}

// beginBytes is how much of an image tells it from others: the superblock, and
// of most apps all inodes and the content of small files.
const beginBytes = 64 << 10

// describeDisk says what is mounted with a disk. It must be EROFS.
func describeDisk(spec *sandbox.Spec, disk int) (mounted, error) {
	if disk < 0 || disk >= len(spec.Disks) {
		return mounted{}, fmt.Errorf("there is no disk %d in a spec of %d", disk, len(spec.Disks))
	}
	name := spec.Disks[disk]
	_, closer, err := ocispec.OpenImage(name)
	if err != nil {
		return mounted{}, fmt.Errorf("disks[%d]: gVisor mounts EROFS only: %w", disk, err)
	}
	closer.Close()
	f, err := os.Open(name)
	if err != nil {
		return mounted{}, fmt.Errorf("disks[%d]: %w", disk, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return mounted{}, fmt.Errorf("disks[%d]: %w", disk, err)
	}
	begin := make([]byte, min(fi.Size(), beginBytes))
	if _, err := io.ReadFull(f, begin); err != nil {
		return mounted{}, fmt.Errorf("disks[%d]: %w", disk, err)
	}
	sum := sha256.Sum256(begin)
	return mounted{Disk: disk, Bytes: fi.Size(), Begin: hex.EncodeToString(sum[:])}, nil
}

// checkDisks checks the disks of a spec, and that those that are mounted in
// what it is restored from are what they were.
func checkDisks(spec *sandbox.Spec, mounts []mounted) error {
	for i := range spec.Disks {
		if _, err := describeDisk(spec, i); err != nil {
			return err
		}
	}
	for _, m := range mounts {
		now, err := describeDisk(spec, m.Disk)
		if err != nil {
			return fmt.Errorf("%s in the snapshot: %w", m.Target, err)
		}
		if now.Target = m.Target; now != m {
			return fmt.Errorf("disks[%d]: %s %w at %s", m.Disk, spec.Disks[m.Disk], sandbox.ErrOtherDisk, m.Target)
		}
	}
	return nil
}

// Mount mounts a disk, read-only, in the function's file system: disk 0 is
// Spec.Disks[0]. It is part of snapshots that are made from then on.
func (s *instance) Mount(ctx context.Context, disk int, target string) error {
	if err := s.mount(ctx, disk, target); err != nil {
		return fmt.Errorf("mount a disk in gVisor sandbox %s: %w", s.spec.ID, err)
	}
	return nil
}

func (s *instance) mount(ctx context.Context, disk int, target string) error {
	if err := s.running(); err != nil {
		return err
	}
	if !path.IsAbs(target) {
		return fmt.Errorf("%q is not an absolute path", target)
	}
	m, err := describeDisk(&s.spec, disk)
	if err != nil {
		return err
	}
	m.Target = path.Clean(target)
	select { // not while a snapshot is made
	case s.saving <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.saving }()
	if slices.ContainsFunc(s.mountedDisks(), func(o mounted) bool { return o.Target == m.Target }) {
		return fmt.Errorf("a disk is mounted at %s already", m.Target)
	}
	f, err := os.Open(s.spec.Disks[disk])
	if err != nil {
		return err
	}
	defer f.Close()
	err = command(ctx, s.socket, mountCommand, map[string]any{"target": m.Target}, f)
	var refused *remoteError
	if !errors.As(err, &refused) {
		// Also if nobody knows: then gVisor is given one image more at a restore.
		s.mu.Lock()
		s.mounts = append(s.mounts, m)
		s.mu.Unlock()
	}
	return notRunning(err)
}

// mountedDisks are those that the sandbox has now.
func (s *instance) mountedDisks() []mounted {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mounts)
}
