package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

var _ sandbox.Snapshotter = (*Driver)(nil)

// restoreModes are the ways to restore, the driver's own choice first: without
// a working set it is RestoreMap.
var restoreModes = []sandbox.RestoreMode{sandbox.RestoreHint, sandbox.RestoreMap, sandbox.RestoreEager, sandbox.RestorePager}

// settleTime is how long nobody listens to a machine that was restored, unless
// somebody wants its agent for another reason: its first request goes before.
const settleTime = time.Second

// image is the memory that a restored machine began with.
type image struct {
	*microvm.Image
	ram *ram // once QEMU runs
	// paging serves the memory in place of a mapping of the base; else nil.
	paging *paging
}

// base is the oldest layer's file: the one that is mapped.
func (i *image) base() *os.File { return i.Files[len(i.Files)-1] }

// upper are the layers above the base: they are copied.
func (i *image) upper() []pager.Layer { return i.Layers[:len(i.Layers)-1] }

// close waits for the end of the machine's service: the machine must have
// ended.
func (i *image) close(ctx context.Context) error {
	if i.paging != nil {
		if err := i.paging.end(ctx); err != nil {
			return err
		}
	}
	return i.Close()
}

// Prepare starts QEMU and loads the snapshot into it, up to the point where
// the processor would go on; with Restore.Ahead it has gone on, and stopped.
func (d *Driver) Prepare(ctx context.Context, spec *sandbox.Spec, r sandbox.Restore) (sandbox.Sandbox, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	mode, err := d.restoreMode(r)
	if err != nil {
		return nil, err
	}
	accel, err := d.resolveAccel(ctx)
	if err != nil {
		return nil, err
	}
	b := d.newBox(spec)
	if err := d.restore(ctx, b, accel, r, mode); err != nil {
		return nil, b.Discard(ctx, err, b.Destroy)
	}
	if r.Record {
		return recording{b}, nil
	}
	return b, nil
}

func (d *Driver) restoreMode(r sandbox.Restore) (sandbox.RestoreMode, error) {
	switch {
	case len(r.Image.Dirs) == 0:
		return "", errors.New("qemu: restore: the image has no folder")
	case r.Mode != "" && !slices.Contains(restoreModes, r.Mode):
		return "", fmt.Errorf("qemu: restore mode %q: %w", r.Mode, sandbox.ErrUnsupported)
	case r.Record:
		return sandbox.RestorePager, nil // nothing else sees what is touched
	case r.Mode == "" && r.Image.WorkingSet != "":
		return sandbox.RestoreHint, nil
	case r.Mode == "":
		return sandbox.RestoreMap, nil
	}
	return r.Mode, nil
}

// restore fills in b, as far as it gets.
func (d *Driver) restore(ctx context.Context, b *box, accel Accel, r sandbox.Restore, mode sandbox.RestoreMode) (err error) {
	begin := time.Now()
	version, err := d.program.Version(ctx)
	if err != nil {
		return err
	}
	saved, state, err := openState(r.Image.File(sandbox.FileState))
	if err != nil {
		return err
	}
	defer state.Close() //nolint:errcheck // QEMU has it
	m := b.machine(accel)
	m.incoming = true
	img, err := microvm.OpenImage(r.Image, m.memoryMiB*mib)
	if err != nil {
		return err
	}
	b.image = &image{Image: img}
	if mode == sandbox.RestoreHint && r.Image.WorkingSet != "" {
		read := make(chan error, 1) // while QEMU starts
		go func() { read <- microvm.ReadAhead(b.image.base(), r.Image.WorkingSet) }()
		defer func() { err = errors.Join(err, <-read) }()
	}
	files, err := openFiles(b.Spec)
	if err != nil {
		return err
	}
	defer files.close()
	files.state = state
	if b.saved, err = b.describe(version, m, files); err != nil {
		return err
	}
	if err := saved.fits(&b.saved); err != nil {
		return err
	}
	b.Origin = &microvm.Origin{
		Saved: &saved.Saved, NewDisks: saved.NewDisks(&b.saved.Saved), Settle: settleTime, Places: d.resuming,
		Run:  func(ctx context.Context) error { return b.vm.qmp.Execute(ctx, "cont", nil, nil) },
		Stop: func(ctx context.Context) error { return b.vm.stop(ctx) },
	}
	memory := b.image.base()
	if mode == sandbox.RestorePager {
		m.paged = true
		if files.state, err = b.newPaging(r, state); err != nil {
			return err
		}
		defer files.state.Close() //nolint:errcheck // QEMU has it
		memory = b.image.paging.memory
	}
	b.Limits = m.limits()
	if b.Group, err = cgroup.Create(b.Spec.Cgroup, b.Limits); err != nil {
		return err
	}
	if err := b.launch(ctx, m, files, memory); err != nil {
		return err
	}
	b.AddPhase("vmm", begin)
	begin = time.Now()
	if b.image.ram, err = findRAM(b.vm.Pid(), memory, m.memoryMiB*mib); err != nil {
		return err
	}
	switch mode {
	case sandbox.RestorePager:
		err = b.serve(ctx)
	case sandbox.RestoreEager:
		err = b.image.ram.apply(b.image.Layers)
	default:
		// What the mapping of the base does not show.
		err = b.image.ram.apply(b.image.upper())
	}
	if err == nil && mode != sandbox.RestorePager {
		err = b.vm.load(ctx)
	}
	if err != nil {
		return err
	}
	b.AddPhase("load", begin)
	if r.Ahead && !r.Record {
		return b.Ahead(ctx, r.Port)
	}
	return nil
}
