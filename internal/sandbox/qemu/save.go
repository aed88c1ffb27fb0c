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

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/sandbox"
)

var _ sandbox.Saver = (*box)(nil)

// Save makes a snapshot. The machine stands still while its memory is copied.
//
// QEMU's migration would do, but writes the memory of a restored machine, a
// private mapping, into its stream. So only the devices' state is QEMU's, by
// the command that Xen's tools use for that, and the memory is copied from
// outside.
func (b *box) Save(ctx context.Context, o sandbox.SaveOptions) (err error) {
	if err := b.running(); err != nil {
		return err
	}
	if o.Diff && b.image == nil {
		return fmt.Errorf("qemu: sandbox %s: a diff needs a sandbox that was restored: %w", b.spec.ID, sandbox.ErrUnsupported)
	}
	if err := lock(ctx, b.saving); err != nil {
		return err
	}
	defer unlock(b.saving)
	memory := filepath.Join(o.Dir, sandbox.FileMemory)
	state := filepath.Join(o.Dir, sandbox.FileState)
	to, err := os.OpenFile(memory, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("qemu: save sandbox %s: %w", b.spec.ID, err)
	}
	err = b.save(ctx, o, to, state)
	if err == nil {
		err = to.Sync()
	}
	if err = errors.Join(err, to.Close()); err == nil {
		return nil
	}
	for _, path := range []string{memory, state} {
		if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if gone := b.running(); gone != nil {
		return gone
	}
	return fmt.Errorf("qemu: save sandbox %s: %w", b.spec.ID, err)
}

func (b *box) save(ctx context.Context, o sandbox.SaveOptions, to *os.File, statePath string) error {
	if b.image != nil && b.image.paging != nil {
		// What is not in the machine's memory yet could not be told from zeros.
		if err := b.image.paging.source.Complete(ctx); err != nil {
			return err
		}
	}
	b.conns.Reset()
	// From here on the machine must get its agent's connection back.
	b.link.hold()
	marks, err := agent.Suspend(ctx, b.dialer(agent.Port), b.token)
	if err != nil {
		return errors.Join(err, b.reconnect(ctx))
	}
	b.rest(ctx)
	devices, err := b.freeze(ctx, func() error { return b.copyMemory(to, o.Diff) })
	// The agent first: whoever waits for the sandbox waits for it.
	if err = errors.Join(err, b.reconnect(ctx)); err != nil {
		return err
	}
	s := b.saved
	s.Token, s.Marks = b.token[:], marks
	return writeState(statePath, s, devices)
}

// How long a machine may take to come to rest, and what is rest: by how much
// its processor is used between two looks.
const (
	restTimeout = time.Second
	restLook    = 20 * time.Millisecond
	restUse     = restLook / 10
)

// rest waits until the guest has nothing to do, for a while. What it does as
// its connections end, every clone would have to do too, before its first
// request.
func (b *box) rest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restTimeout)
	defer cancel()
	t := time.NewTicker(restLook)
	defer t.Stop()
	for last := time.Duration(-1); ; {
		s, err := b.group.Stats()
		if err != nil || (last >= 0 && s.CPUTime-last < restUse) {
			return
		}
		last = s.CPUTime
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// freeze stops the machine, returns its devices' state, calls f, and has it go
// on.
func (b *box) freeze(ctx context.Context, f func() error) (devices []byte, err error) {
	b.vm.expectStop(true)
	defer b.vm.expectStop(false)
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		if cerr := b.vm.qmp.Execute(clean, "cont", nil, nil); cerr != nil {
			b.vm.kill() // so that Wait returns
			err = errors.Join(err, cerr)
		}
	}()
	if err := b.vm.qmp.Execute(ctx, "stop", nil, nil); err != nil {
		return nil, err
	}
	if devices, err = b.vm.devices(ctx); err != nil {
		return nil, err
	}
	return devices, f()
}

func (b *box) copyMemory(to *os.File, diff bool) error {
	switch {
	case b.image == nil:
		return copyShared(to, b.vm.memory, b.saved.MemoryMiB*mib)
	case diff:
		return b.image.ram.copyChanged(to, b.image.source)
	default:
		return b.image.ram.copyWhole(to, b.image.source)
	}
}

// reconnect connects to the agent after a snapshot. Without it the sandbox is
// of no use, and is ended.
func (b *box) reconnect(ctx context.Context) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	b.link.release()
	_, err := b.link.get(clean)
	if err != nil {
		b.vm.kill()
	}
	return err
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
		case <-v.dead:
		case <-t.C:
		}
		return fmt.Errorf("load the devices' state: %w", v.explain())
	case <-v.dead:
		return fmt.Errorf("load the devices' state: %w", v.explain())
	case <-ctx.Done():
		return fmt.Errorf("load the devices' state: %w: %w", ctx.Err(), v.explain())
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

// resumeTimeout bounds the guest's first answer after a restore.
const resumeTimeout = time.Minute
