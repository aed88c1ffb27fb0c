package qemu

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// box is one machine.
type box struct {
	*microvm.Box
	d *Driver

	// Set while it is being created, and not changed after.
	vm     *vm
	saved  savedState // what a snapshot would say of it
	memory *os.File   // of a machine that was booted, else nil
	image  *image     // what it was restored from, nil if booted
}

func (d *Driver) newBox(spec *sandbox.Spec) *box {
	return &box{Box: microvm.New(Name, spec), d: d}
}

// Destroy ends the machine and frees what it held.
func (b *box) Destroy(ctx context.Context) error {
	return b.DestroyWith(ctx, func(ctx context.Context) error {
		var errs []error
		if b.vm != nil {
			errs = append(errs, ignoreClosed(b.vm.qmp.Close()))
		}
		if b.image != nil {
			errs = append(errs, b.image.close(ctx))
		}
		if b.memory != nil {
			errs = append(errs, b.memory.Close())
			b.memory = nil
		}
		return errors.Join(errs...)
	})
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// machine is what a box needs, but for the descriptors.
func (b *box) machine(accel Accel) machine {
	m := machine{
		id: b.Spec.ID, accel: accel, mac: b.Spec.Link.MAC,
		memoryMiB:   microvm.MachineMiB(b.Resources.MemoryBytes),
		cpus:        microvm.VCPUs(b.Resources.CPUMillis),
		guestParams: append(b.GuestParams(), b.d.kernelArgs...),
	}
	if accel == AccelTCG {
		m.tscKHz = tscKHz()
	}
	return m
}
