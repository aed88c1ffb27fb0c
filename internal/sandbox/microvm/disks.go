package microvm

import (
	"context"
	"fmt"
	"slices"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/fingerprint"
	"github.com/skep-dev/skep/internal/sandbox"
)

// SavedDisk is what a disk was when the snapshot was made.
type SavedDisk struct {
	Path     string
	Bytes    int64
	Modified int64 // ns
	// Mounted is where it was mounted first, and Content is its image's
	// fingerprint then; "" if it was not.
	Mounted string `json:",omitempty"`
	Content string `json:",omitempty"`
}

// NewDisks says if any disk is not what it was, so that the guest must look
// again. Those that are mounted it cannot let go of, and knows parts of: they
// must have the same content, wherever that is now; if not, the error is a
// sandbox.ErrOtherDisk. Both have the same number of disks.
func (s *Saved) NewDisks(now *Saved) (bool, error) {
	renewed := false
	for i, was := range s.Disks {
		is := now.Disks[i]
		if was.Path == is.Path && was.Bytes == is.Bytes && was.Modified == is.Modified {
			continue
		}
		if was.Mounted == "" {
			renewed = true
			continue
		}
		content, err := fingerprint.File(is.Path)
		if err != nil {
			return false, fmt.Errorf("disks[%d]: %w", i, err)
		}
		if was.Bytes != is.Bytes || was.Content != content {
			return false, fmt.Errorf("disks[%d]: %s %w at %s", i, is.Path, sandbox.ErrOtherDisk, was.Mounted)
		}
	}
	return renewed, nil
}

// mountedDisk is a disk that the guest has mounted.
type mountedDisk struct{ target, content string }

// Mount mounts a disk, read-only, in the function's file system: disk 0 is
// Spec.Disks[0].
func (b *Box) Mount(ctx context.Context, disk int, target string) error {
	if err := b.Running(); err != nil {
		return err
	}
	if disk < 0 || disk >= len(b.Spec.Disks) {
		return b.wrap(fmt.Errorf("there is no disk %d", disk))
	}
	content, err := fingerprint.File(b.Spec.Disks[disk])
	if err != nil {
		return b.wrap(fmt.Errorf("disks[%d]: %w", disk, err))
	}
	return b.call(ctx, func(c *agent.Client) error {
		err := c.Mount(ctx, uint32(disk), target)
		if err == nil || ctx.Err() != nil { // also if nobody knows
			b.mu.Lock()
			defer b.mu.Unlock()
			if _, ok := b.mounts[disk]; !ok {
				b.mounts[disk] = mountedDisk{target, content}
			}
		}
		return err
	})
}

// Mounted returns disks as they are, with what is mounted now.
func (b *Box) Mounted(disks []SavedDisk) []SavedDisk {
	disks = slices.Clone(disks)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range disks {
		d := &disks[i]
		m, ok := b.mounts[i]
		switch {
		case ok:
			d.Mounted, d.Content = m.target, m.content
		case b.Origin != nil: // as it was in the snapshot
			d.Mounted, d.Content = b.Origin.Saved.Disks[i].Mounted, b.Origin.Saved.Disks[i].Content
		}
	}
	return disks
}
