package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

var _ sandbox.Saver = (*box)(nil)

// Save makes a snapshot. The machine stands still while its memory is copied.
//
// QEMU's migration would do, but writes the memory of a restored machine, a
// private mapping, into its stream. So only the devices' state is QEMU's, by
// the command that Xen's tools use for that, and the memory is copied from
// outside.
func (b *box) Save(ctx context.Context, o sandbox.SaveOptions) error {
	return b.Snapshot(ctx, o, []string{sandbox.FileMemory, sandbox.FileState}, func(ctx context.Context) error {
		to, err := os.OpenFile(filepath.Join(o.Dir, sandbox.FileMemory), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err = b.save(ctx, o, to); err != nil {
			return errors.Join(err, to.Close())
		}
		return syncAndClose(ctx, to)
	})
}

type syncCloser interface {
	Sync() error
	Close() error
}

// syncAndClose has a file written to disk. That cannot be interrupted: when ctx
// ends nobody waits for it any more.
func syncAndClose(ctx context.Context, f syncCloser) error {
	done := make(chan error, 1)
	go func() { done <- errors.Join(f.Sync(), f.Close()) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("write the snapshot to disk: %w", context.Cause(ctx))
	}
}

func (b *box) save(ctx context.Context, o sandbox.SaveOptions, to *os.File) error {
	if b.image != nil && b.image.paging != nil {
		// What is not in the machine's memory yet could not be told from zeros.
		if err := b.image.paging.source.Complete(ctx); err != nil {
			return err
		}
	}
	var devices []byte
	token, marks, err := b.Suspended(ctx, func() (err error) {
		devices, err = b.freeze(ctx, func() error { return b.copyMemory(ctx, to, o.Diff) })
		return err
	})
	if err != nil {
		return err
	}
	s := b.saved
	s.Token, s.Marks, s.Disks = token[:], marks, b.Mounted(s.Disks)
	return writeState(filepath.Join(o.Dir, sandbox.FileState), s, devices)
}

// freeze stops the machine, returns its devices' state, calls f, and has it go
// on.
func (b *box) freeze(ctx context.Context, f func() error) (devices []byte, err error) {
	defer func() {
		clean, cancel := microvm.CleanUp(ctx)
		defer cancel()
		if cerr := b.vm.qmp.Execute(clean, "cont", nil, nil); cerr != nil {
			b.vm.Kill() // so that Wait returns
			err = errors.Join(err, cerr)
		}
	}()
	if err := b.vm.stop(ctx); err != nil {
		return nil, err
	}
	if devices, err = b.vm.devices(ctx); err != nil {
		return nil, err
	}
	return devices, f()
}

// stop has the machine stand still, until "cont". QEMU tells of it before it
// answers.
func (v *vm) stop(ctx context.Context) error {
	v.stopping.Store(true)
	defer v.stopping.Store(false)
	return v.qmp.Execute(ctx, "stop", nil, nil)
}

// copyMemory ends with ctx: the machine stands still meanwhile.
func (b *box) copyMemory(ctx context.Context, to *os.File, diff bool) error {
	switch {
	case b.image == nil:
		return copyShared(ctx, to, b.memory, b.saved.MemoryMiB*mib)
	case diff:
		return b.image.ram.copyChanged(ctx, to, b.image.Source)
	default:
		return b.image.ram.copyWhole(ctx, to, b.image.Source)
	}
}

// devices has QEMU write the devices' state. QEMU opens no file: it is given
// one that is only for writing, in memory counted as its own.
func (v *vm) devices(ctx context.Context) ([]byte, error) {
	f, err := newMemory(0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // in memory
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("devices' state: %w", err)
	}
	defer w.Close() //nolint:errcheck // QEMU has it
	var set struct {
		ID int64 `json:"fdset-id"`
	}
	if err := v.qmp.ExecuteWithFile(ctx, "add-fd", nil, &set, w); err != nil {
		return nil, err
	}
	err = v.qmp.Execute(ctx, "xen-save-devices-state", map[string]any{
		"filename": fmt.Sprintf("/dev/fdset/%d", set.ID),
		"live":     false, // the machine goes on
	}, nil)
	err = errors.Join(err, v.qmp.Execute(ctx, "remove-fd", map[string]any{"fdset-id": set.ID}, nil))
	if err != nil {
		return nil, fmt.Errorf("devices' state: %w", err)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxDevices+1))
	if err != nil {
		return nil, fmt.Errorf("devices' state: %w", err)
	}
	if len(b) == 0 || len(b) > maxDevices {
		return nil, fmt.Errorf("devices' state: QEMU wrote %d bytes", len(b))
	}
	return b, nil
}

// load has QEMU read the devices' state. The machine is then paused.
func (v *vm) load(ctx context.Context) error {
	err := v.qmp.Execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": "events", "state": true}},
	}, nil)
	if err != nil {
		return err
	}
	if err := v.qmp.Execute(ctx, "migrate-incoming", map[string]any{"uri": fmt.Sprintf("fd:%d", v.stateFD)}, nil); err != nil {
		return err
	}
	select {
	case status := <-v.loaded:
		if status != "failed" {
			return nil
		}
		// It ends now, and says why.
		t := time.NewTimer(time.Second)
		defer t.Stop()
		select {
		case <-v.Dead():
		case <-t.C:
		}
		return fmt.Errorf("load the devices' state: %w", v.Explain())
	case <-v.Dead():
		return fmt.Errorf("load the devices' state: %w", v.Explain())
	case <-ctx.Done():
		return fmt.Errorf("load the devices' state: %w: %w", ctx.Err(), v.Explain())
	}
}

// migrated hears of a migration's end.
func (v *vm) migrated(data json.RawMessage) {
	var d struct {
		Status string `json:"status"`
	}
	_ = json.Unmarshal(data, &d)
	switch d.Status {
	case "completed", "failed", "postcopy-active":
		select {
		case v.loaded <- d.Status:
		default:
		}
	}
}
