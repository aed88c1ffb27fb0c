package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// Name of the driver.
const Name = "qemu"

// What a machine takes besides the function's memory.
const (
	// qemuOverhead is for QEMU itself, translated code not included.
	qemuOverhead = 96 * mib
	// qemuThreads bounds QEMU's threads; it makes some for each disk request.
	qemuThreads = 256
)

// Driver makes micro-VMs. It implements sandbox.Driver.
type Driver struct {
	log     *slog.Logger
	program *microvm.Program
	files   *microvm.BootFiles
	// kernelArgs are appended to the guest kernel's.
	kernelArgs []string

	// booting has a place for each machine that may boot at the same time:
	// more than there are processors would only make all of them late, and
	// emulated clocks do not like to wait.
	booting chan struct{}
	// resuming has one for each that may come back to life at the same time. An
	// emulated machine that has to share its processor does more: its clock goes
	// on, and so do its timers.
	resuming chan struct{}

	probing chan struct{} // lock of accel and proved
	accel   Accel         // auto until it is known
	proved  atomic.Bool   // KVM works
}

var _ sandbox.Driver = (*Driver)(nil)

// Name is "qemu".
func (d *Driver) Name() string { return Name }

// Capabilities says that hardware virtualization is in use only after Probe or
// Create has proved it.
func (d *Driver) Capabilities() sandbox.Capabilities {
	return sandbox.Capabilities{
		Link:                   sandbox.LinkTAP,
		HardwareVirtualization: d.proved.Load(),
		OwnKernel:              true,
		Snapshot:               true,
		RestoreModes:           slices.Clone(restoreModes),
		LayeredSnapshot:        true,
		OnDemandMemory:         true,
		BlockDevices:           true,
		Disks:                  true,
		RootfsXattrs:           true,
	}
}

// Create boots a machine up to the point where its agent waits for the
// function's process.
func (d *Driver) Create(ctx context.Context, spec *sandbox.Spec) (sandbox.Sandbox, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := checkRootfs(spec.Rootfs); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	accel, err := d.resolveAccel(ctx)
	if err != nil {
		return nil, err
	}
	var tries faults
	for {
		b := d.newBox(spec)
		err := d.boot(ctx, b, accel)
		if err == nil {
			return b, nil
		}
		at := ""
		if errors.Is(err, microvm.ErrSilent) {
			at = b.vm.registers(ctx)
		}
		again := tries.again(err)
		if err = b.Discard(ctx, err, b.Destroy); !again || ctx.Err() != nil {
			return nil, err
		}
		d.log.Warn("a machine is of no use: it is booted again", "id", spec.ID, "error", err, "registers", at)
	}
}

// A machine is booted again, so often in all, that does not answer, and one
// whose timer was measured wrong. Emulated machines on a busy host do the
// latter, see agent.ErrTimer; it is why some did the former.
const (
	silentTries = 2
	timerTries  = 4 // they take less time, and are of no use more often
)

// faults counts machines of no use.
type faults struct{ silent, timer int }

// again says if the next boot may do better than one that failed with err.
func (f *faults) again(err error) bool {
	switch {
	case errors.Is(err, microvm.ErrTimer):
		f.timer++
		return f.timer < timerTries
	case errors.Is(err, microvm.ErrSilent):
		f.silent++
		return f.silent < silentTries
	}
	return false
}

// limits are a machine's before Start. The processor is limited from there on:
// booting is our work, not the function's, and would take long on a part of
// one.
func (m machine) limits() cgroup.Limits {
	l := cgroup.Limits{MemoryBytes: m.memoryMiB*mib + qemuOverhead, PIDs: qemuThreads}
	if m.accel == AccelTCG {
		l.MemoryBytes += codeMiB * mib
	}
	return l
}

// boot fills in b, as far as it gets.
func (d *Driver) boot(ctx context.Context, b *box, accel Accel) error {
	version, err := d.program.Version(ctx)
	if err != nil {
		return err
	}
	m := b.machine(accel)
	if m.kernel, m.initrd, err = d.files.Prepare(ctx); err != nil {
		return err
	}
	return b.Boot(ctx, d.booting, func(ctx context.Context) error {
		b.Limits = m.limits()
		if b.Group, err = cgroup.Create(b.Spec.Cgroup, b.Limits); err != nil {
			return err
		}
		files, err := openFiles(b.Spec)
		if err != nil {
			return err
		}
		defer files.close()
		if b.saved, err = b.describe(version, m, files); err != nil {
			return err
		}
		if b.memory, err = newMemory(m.memoryMiB * mib); err != nil {
			return err
		}
		return b.launch(ctx, m, files, b.memory)
	})
}

// launch starts QEMU for a box.
func (b *box) launch(ctx context.Context, m machine, files *machineFiles, memory *os.File) error {
	vm, err := b.d.start(ctx, m, files, memory, b.Group)
	if err != nil {
		return err
	}
	b.vm, b.Machine = vm, vm
	return nil
}

// Reap ends the machine with this state, if there is one. A machine has no
// files. Its process is in its cgroup, but for its first moments: so it is
// also looked for by its name.
func (d *Driver) Reap(ctx context.Context, s sandbox.State) error {
	if err := reap(ctx, s); err != nil {
		return fmt.Errorf("qemu: reap sandbox %s: %w", s.ID, err)
	}
	return nil
}

func reap(ctx context.Context, s sandbox.State) error {
	g, err := cgroup.Load(s.Cgroup)
	if err != nil {
		return err
	}
	err = microvm.KillMatching(ctx, func(args []string) bool { return slices.Contains(args, processName(s.ID)) })
	if err != nil {
		return err
	}
	return errors.Join(g.Kill(ctx), g.Delete(ctx))
}
