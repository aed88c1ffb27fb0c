package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

var _ sandbox.Snapshotter = (*Driver)(nil)

// restoreModes are the ways to restore.
var restoreModes = []sandbox.RestoreMode{sandbox.RestorePager, sandbox.RestoreMap, sandbox.RestoreHint}

// restoreMode is what is asked for, or what suits the image best: memory that
// is in one file is mapped, if it is not known what will be needed of it.
func (d *Driver) restoreMode(r sandbox.Restore) (sandbox.RestoreMode, error) {
	pagerOnly := d.conf.HugePages || r.Record
	switch {
	case len(r.Image.Dirs) == 0:
		return "", errors.New("restore: the image has no folder")
	case r.Mode == "" && (pagerOnly || r.Image.WorkingSet != "" || len(r.Image.Dirs) > 1):
		return sandbox.RestorePager, nil
	case r.Mode == "":
		return sandbox.RestoreMap, nil
	case !slices.Contains(restoreModes, r.Mode):
		return "", fmt.Errorf("restore mode %q: %w", r.Mode, sandbox.ErrUnsupported)
	case pagerOnly && r.Mode != sandbox.RestorePager:
		return "", fmt.Errorf("restore mode %q with huge pages, or with a recording: %w", r.Mode, sandbox.ErrUnsupported)
	}
	return r.Mode, nil
}

// Prepare starts a monitor and loads the snapshot into it, up to the point
// where the processor would go on.
func (d *Driver) Prepare(ctx context.Context, spec *sandbox.Spec, r sandbox.Restore) (sandbox.Sandbox, error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	mode, err := d.restoreMode(r)
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := d.newBox(spec)
	if err := d.restore(ctx, b, r, mode); err != nil {
		return nil, b.Discard(ctx, err, b.Destroy)
	}
	if r.Record {
		return &recordedBox{b}, nil
	}
	return b, nil
}

// restore fills in b, as far as it gets.
func (d *Driver) restore(ctx context.Context, b *box, r sandbox.Restore, mode sandbox.RestoreMode) (err error) {
	begin := time.Now()
	version, err := d.firecrackerVersion(ctx)
	if err != nil {
		return err
	}
	saved, state, err := readMachine(&r.Image)
	if err != nil {
		return err
	}
	now, err := d.describe(b, version)
	if err != nil {
		return err
	}
	if err := saved.fits(&now); err != nil {
		return err
	}
	renewed, err := saved.NewDisks(&now.Saved)
	if err != nil {
		return err
	}
	b.Origin = &microvm.Origin{
		// Not NewDisks: Firecracker tells the guest's driver itself, see update,
		// and cannot stand that it is bound anew, which resets the device.
		Saved: &saved.Saved,
		Run:   func(ctx context.Context) error { return b.vm.api.SetState(ctx, fcapi.Resumed) },
		Stop:  func(ctx context.Context) error { return b.vm.api.SetState(ctx, fcapi.Paused) },
	}
	if b.image, err = microvm.OpenImage(r.Image, saved.MemoryMiB*mib); err != nil {
		return err
	}
	load := fcapi.SnapshotLoad{
		StatePath: statePath, TrackDirtyPages: d.tracks(),
		NetworkOverrides: []fcapi.NetworkOverride{{ID: netCard, Device: b.Spec.Link.Interface}},
	}
	if b.jail, err = newJail(b.Spec.Dir, d.program.Path, b.Spec.ID, microvm.UID(b.Spec.ID)); err != nil {
		return err
	}
	if err := b.jail.give(statePath, state); err != nil {
		return err
	}
	if mode == sandbox.RestoreHint && r.Image.WorkingSet != "" && len(b.image.Files) == 1 {
		read := make(chan error, 1) // while the monitor starts
		go func() { read <- microvm.ReadAhead(b.image.Files[0], r.Image.WorkingSet) }()
		defer func() { err = errors.Join(err, <-read) }()
	}
	var binds []bind
	if mode == sandbox.RestorePager {
		load.Memory = &fcapi.MemoryBackend{Type: fcapi.BackendUFFD, Path: pagerSocket}
		if b.paging, err = b.newPaging(r); err != nil {
			return err
		}
	} else {
		load.Memory = &fcapi.MemoryBackend{Type: fcapi.BackendFile, Path: memoryPath}
		if binds, err = d.mapMemory(ctx, b, r); err != nil {
			return err
		}
	}
	if err := d.prepareMonitor(ctx, b, binds); err != nil {
		return err
	}
	b.AddPhase("vmm", begin)
	begin = time.Now()
	if mode == sandbox.RestorePager {
		b.servePages(ctx)
	}
	if err := b.vm.api.LoadSnapshot(ctx, load); err != nil {
		return fmt.Errorf("%w; %w", err, b.vm.Explain())
	}
	if err := b.update(ctx, saved.Limits, renewed); err != nil {
		return err
	}
	b.AddPhase("load", begin)
	if r.Ahead && !r.Record {
		return b.Ahead(ctx, r.Port)
	}
	return nil
}

// update gives a machine that was loaded what is this node's: disks, limits and
// metadata. was is what the snapshot has; newDisks says that the disks are others.
func (b *box) update(ctx context.Context, was limits, newDisks bool) error {
	now, api := b.limits(), b.vm.api
	disk := changed(was.Disk, now.Disk)
	for i := range b.Spec.Disks {
		u := fcapi.DriveUpdate{ID: fmt.Sprintf("disk%d", i), RateLimiter: disk}
		if newDisks {
			u.Path = diskPath(i) // has the guest learn of its size
		}
		if u.Path == "" && disk == nil {
			continue
		}
		if err := api.PatchDrive(ctx, u); err != nil {
			return err
		}
	}
	if disk != nil {
		if err := api.PatchDrive(ctx, fcapi.DriveUpdate{ID: rootDrive, RateLimiter: disk}); err != nil {
			return err
		}
	}
	if rx, tx := changed(was.Receive, now.Receive), changed(was.Send, now.Send); rx != nil || tx != nil {
		if err := api.PatchNetworkInterface(ctx, fcapi.NetworkInterfaceUpdate{ID: netCard, RX: rx, TX: tx}); err != nil {
			return err
		}
	}
	if was.BalloonMiB != now.BalloonMiB {
		if err := api.PatchBalloon(ctx, fcapi.BalloonUpdate{AmountMiB: now.BalloonMiB}); err != nil {
			return err
		}
	}
	if b.d.conf.MMDS != nil { // which is not in the snapshot
		return api.PutMMDS(ctx, b.d.conf.MMDS)
	}
	return nil
}

// changed is what to update a limit with; nil if it is the same. A bucket of
// nothing is no limit.
func changed(was, now *fcapi.RateLimiter) *fcapi.RateLimiter {
	if reflect.DeepEqual(was, now) {
		return nil
	}
	u := fcapi.RateLimiter{Bandwidth: &fcapi.TokenBucket{}, Ops: &fcapi.TokenBucket{}}
	if now != nil && now.Bandwidth != nil {
		u.Bandwidth = now.Bandwidth
	}
	if now != nil && now.Ops != nil {
		u.Ops = now.Ops
	}
	return &u
}

// mapMemory puts one file with the memory into the jail: that of the image if
// it is one, or else a copy.
func (d *Driver) mapMemory(ctx context.Context, b *box, r sandbox.Restore) ([]bind, error) {
	if len(b.image.Files) > 1 {
		path := b.jail.path(memoryPath)
		if err := flatten(ctx, b.image.Source, path); err != nil {
			return nil, err
		}
		return nil, os.Chown(path, b.jail.uid, b.jail.uid)
	}
	// It is left as it is, also its times: whoever keeps it tells by them that
	// nobody has changed it.
	return []bind{{filepath.Join(r.Image.Dirs[0], sandbox.FileMemory), memoryPath}}, nil
}
