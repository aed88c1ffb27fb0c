package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"github.com/skep-dev/skep/internal/fingerprint"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// gVisor has no block devices, but it can mount an EROFS image that it is given
// as a file.

// mounted is a disk that is mounted, also in a snapshot: gVisor wants the same
// image again, and its own check ends in a panic.
type mounted struct {
	Disk     int    // index in Spec.Disks
	Target   string // clean path
	Path     string // of the image
	Bytes    int64
	Modified int64  // nanoseconds since 1970
	Content  string // fingerprint.File
}

// describeDisk says what is mounted with a disk, but for its content. It must
// be EROFS.
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
	fi, err := os.Stat(name)
	if err != nil {
		return mounted{}, fmt.Errorf("disks[%d]: %w", disk, err)
	}
	return mounted{Disk: disk, Path: name, Bytes: fi.Size(), Modified: fi.ModTime().UnixNano()}, nil
}

// checkDisks checks the disks of a spec, and that those that are mounted in
// what it is restored from have the content that they had, wherever that is now.
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
		if now.Target, now.Content = m.Target, m.Content; now == m {
			continue // which is faster than to read it
		}
		switch content, err := fingerprint.File(now.Path); {
		case err != nil:
			return fmt.Errorf("disks[%d]: %w", m.Disk, err)
		case content != m.Content:
			return fmt.Errorf("disks[%d]: %s %w at %s", m.Disk, now.Path, sandbox.ErrOtherDisk, m.Target)
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
	if m.Content, err = fingerprint.File(m.Path); err != nil {
		return fmt.Errorf("disks[%d]: %w", disk, err)
	}
	select { // not while a snapshot is made
	case s.saving <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.saving }()
	if slices.ContainsFunc(s.mountedDisks(), func(o mounted) bool { return o.Target == m.Target }) {
		return fmt.Errorf("a disk is mounted at %s already", m.Target)
	}
	f, err := os.Open(m.Path)
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
