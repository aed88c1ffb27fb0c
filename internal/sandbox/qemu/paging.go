package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/qemu/migration"
)

// The names that QEMU's streams have for the guest's memory and for what says
// so, in a stream of our own making. Section numbers are only compared with
// one another.
const (
	memoryBlock   = "mem" // the backend's ID
	memorySection = 2
	machineType   = "microvm"
)

// paging serves a machine's memory: QEMU takes it for a migration that is not
// through, and asks for each page that the machine touches.
type paging struct {
	source *migration.Source
	memory *os.File // empty: what is private in its mapping is the guest's
	cancel context.CancelFunc
	served chan error  // Serve's result, once
	record atomic.Bool // Recorded was not called
}

// recording is a box that was prepared with Restore.Record.
type recording struct{ *box }

var _ sandbox.Recorder = recording{}

// Recorded writes the pages touched so far, in the order of first touch.
func (r recording) Recorded(ctx context.Context, path string) error {
	if err := r.running(); err != nil {
		return err
	}
	p := r.image.paging
	if !p.record.CompareAndSwap(true, false) {
		return fmt.Errorf("qemu: sandbox %s: recorded already: %w", r.spec.ID, sandbox.ErrUnsupported)
	}
	if err := pager.WriteWorkingSet(ctx, path, p.source.StopRecording(), r.image.source); err != nil {
		return fmt.Errorf("qemu: sandbox %s: %w", r.spec.ID, err)
	}
	return nil
}

var _ sandbox.Drifter = (*box)(nil)

// Drift implements sandbox.Drifter for machines that are paged.
func (b *box) Drift() (pager.Drift, bool) {
	if b.image == nil || b.image.paging == nil || b.image.workingSet == nil {
		return pager.Drift{}, false
	}
	return b.image.paging.source.Drift(), true
}

// devicesOf is the stream of the devices' state without its ends: QEMU's
// magic number and version, and the mark of its end.
func devicesOf(stream []byte) ([]byte, error) {
	const magic = "QEVM\x00\x00\x00\x03"
	if len(stream) <= len(magic) || string(stream[:len(magic)]) != magic || stream[len(stream)-1] != 0 {
		return nil, fmt.Errorf("%w: the devices' state", errDamaged)
	}
	return stream[len(magic) : len(stream)-1], nil
}

// newPaging makes the source of a machine's memory, and QEMU's end of it.
func (b *box) newPaging(r sandbox.Restore, devices []byte) (theirs *os.File, err error) {
	size := b.saved.MemoryMiB * mib
	if devices, err = devicesOf(devices); err != nil {
		return nil, err
	}
	cfg := migration.Config{
		State: &migration.State{
			Machine: machineType, SectionID: memorySection, Devices: devices,
			Blocks: []migration.Block{{Name: memoryBlock, Size: uint64(size)}},
			// Or a request for a page of firmware would end the machine.
			DevicesOnly: true,
		},
		Block: memoryBlock, Memory: b.image.source, Record: r.Record,
		Kill: func(ctx context.Context) error {
			b.vm.kill()
			return b.vm.wait(ctx)
		},
	}
	if r.Image.WorkingSet != "" && !r.Record {
		if b.image.workingSet, err = pager.OpenWorkingSet(r.Image.WorkingSet, false); err != nil {
			return nil, err
		}
		cfg.WorkingSet = b.image.workingSet
	}
	p := &paging{}
	p.record.Store(r.Record)
	if p.memory, err = newMemory(size); err != nil {
		return nil, err
	}
	b.image.paging = p
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	cfg.Conn = ours
	if p.source, err = migration.New(cfg); err != nil {
		return nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	p.cancel = func() { _ = ours.Close() } // unless it is served
	return theirs, nil
}

// serve has QEMU take the memory from us from now on, until the machine ends.
func (b *box) serve(ctx context.Context) error {
	err := b.vm.qmp.Execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": "postcopy-ram", "state": true}},
	}, nil)
	if err != nil {
		return err
	}
	p := b.image.paging
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel, p.served = cancel, make(chan error, 1)
	go func() { p.served <- p.source.Serve(serving) }()
	return b.vm.load(ctx)
}

// end ends the service of a machine that has ended.
func (p *paging) end(ctx context.Context) error {
	if p.cancel != nil {
		p.cancel()
	}
	if p.served != nil {
		select {
		case err := <-p.served: // why, the machine's end says
			p.served <- err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return p.memory.Close()
}
