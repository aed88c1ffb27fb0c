package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/sandbox/qemu/migration"
)

// memoryBlock is the name that QEMU's streams have for the guest's memory: its
// backend's ID.
const memoryBlock = "mem"

// paging serves a machine's memory: QEMU takes it for a migration that is not
// through, and asks for each page that the machine touches.
type paging struct {
	cfg    migration.Config // of source, but for what QEMU's process adds
	source *migration.Source
	memory *os.File      // empty: what is private in its mapping is the guest's
	conn   net.Conn      // our end of the migration
	served chan struct{} // closed when the service has ended; nil: it never began
	record atomic.Bool   // Recorded was not called
	freed  bool          // nothing is held any more
}

// recording is a box that was prepared with Restore.Record.
type recording struct{ *box }

var _ sandbox.Recorder = recording{}

// Recorded writes the pages touched so far, in the order of first touch.
func (r recording) Recorded(ctx context.Context, path string) error {
	if err := r.Running(); err != nil {
		return err
	}
	p := r.image.paging
	if !p.record.CompareAndSwap(true, false) {
		return fmt.Errorf("qemu: sandbox %s: recorded already: %w", r.Spec.ID, sandbox.ErrUnsupported)
	}
	if err := pager.WriteWorkingSet(ctx, path, p.source.StopRecording(), r.image.Source); err != nil {
		return fmt.Errorf("qemu: sandbox %s: %w", r.Spec.ID, err)
	}
	return nil
}

var _ sandbox.Drifter = (*box)(nil)

// Drift implements sandbox.Drifter for machines that are paged.
func (b *box) Drift() (pager.Drift, bool) {
	if b.image == nil || b.image.paging == nil {
		return pager.Drift{}, false
	}
	p := b.image.paging
	if p.source == nil || p.cfg.WorkingSet == nil {
		return pager.Drift{}, false
	}
	return p.source.Drift(), true
}

// newPaging prepares the service of a machine's memory, and returns QEMU's end
// of it. devices is their state as QEMU wrote it.
func (b *box) newPaging(r sandbox.Restore, devices io.Reader) (theirs *os.File, err error) {
	size := b.saved.MemoryMiB * mib
	p := &paging{}
	b.image.paging = p // and so what is open is closed
	p.record.Store(r.Record)
	p.cfg = migration.Config{Block: memoryBlock, Memory: b.image.Source, Record: r.Record, Log: b.d.log}
	p.cfg.State, err = migration.ParseDevices(devices, migration.Block{Name: memoryBlock, Size: uint64(size)})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", microvm.ErrDamaged, err)
	}
	if r.Image.WorkingSet != "" && !r.Record {
		if p.cfg.WorkingSet, err = pager.OpenWorkingSet(r.Image.WorkingSet, false); err != nil {
			return nil, err
		}
		_ = p.cfg.WorkingSet.Advise() // only a hint: it is read while QEMU starts
	}
	if p.memory, err = newMemory(size); err != nil {
		return nil, err
	}
	p.conn, theirs, err = socketPair()
	return theirs, err
}

// serve has QEMU take the memory from us from now on, until the machine ends.
func (b *box) serve(ctx context.Context) error {
	p := b.image.paging
	p.cfg.Conn, p.cfg.Exited = p.conn, b.vm.Dead()
	p.cfg.Kill = func(context.Context) error { b.vm.Kill(); return nil }
	var err error
	if p.source, err = migration.New(p.cfg); err != nil {
		return err
	}
	err = b.vm.qmp.Execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": "postcopy-ram", "state": true}},
	}, nil)
	if err != nil {
		return err
	}
	p.served = make(chan struct{})
	serving := context.WithoutCancel(ctx) // it ends with the machine
	go func() {
		defer close(p.served)
		if err := p.source.Serve(serving); err != nil {
			b.vm.Note(err.Error())
			b.d.log.Error("qemu: the machine's memory is not served any more, it was killed", "sandbox", b.Spec.ID, "error", err)
		}
	}()
	return b.vm.load(ctx)
}

// end frees what the service of a machine that has ended holds. It may be
// called again.
func (p *paging) end(ctx context.Context) error {
	var errs []error
	switch {
	case p.freed:
		return nil
	case p.served != nil:
		select {
		case <-p.served:
		case <-ctx.Done():
			return ctx.Err()
		}
	case p.conn != nil:
		errs = append(errs, p.conn.Close())
	}
	p.freed = true
	if p.memory != nil {
		errs = append(errs, p.memory.Close())
	}
	if p.cfg.WorkingSet != nil {
		errs = append(errs, p.cfg.WorkingSet.Close())
	}
	return errors.Join(errs...)
}
