package firecracker

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// Names of devices. Snapshots know them.
const (
	rootDrive = "root"
	netCard   = "net"
)

// kernelParams are the guest kernel's: no clock chip to look for, a keyboard
// controller that is there only to end the machine by.
func kernelParams() []string {
	return append(microvm.KernelParams(),
		"reboot=k", // what Firecracker ends on
		"i8042.noaux", "i8042.nomux", "i8042.nopnp", "i8042.dumbkbd")
}

// boot fills in b, as far as it gets.
func (d *Driver) boot(ctx context.Context, b *box) error {
	kernel, initrd, err := d.files.Prepare(ctx)
	if err != nil {
		return err
	}
	return b.Boot(ctx, d.booting, func(ctx context.Context) error {
		// The processor is limited from Start on: booting is our work, not the
		// function's, and would take long on a part of one.
		if err := d.prepareMonitor(ctx, b, []bind{{kernel, kernelPath}, {initrd, initrdPath}}); err != nil {
			return err
		}
		err := d.configure(ctx, b)
		if err == nil {
			err = b.vm.api.Act(ctx, fcapi.InstanceStart)
		}
		if err != nil {
			return fmt.Errorf("%w; %w", err, b.vm.Explain())
		}
		return nil
	})
}

func memoryMiB(b *box) int64 {
	n := microvm.MachineMiB(b.Resources.MemoryBytes)
	return n + n%2 // huge pages need an even number
}

// prepareMonitor makes cgroup, jail and monitor of a box.
func (d *Driver) prepareMonitor(ctx context.Context, b *box, binds []bind) error {
	mem := memoryMiB(b) * mib
	b.Limits = cgroup.Limits{MemoryBytes: mem + overhead, PIDs: threads}
	if d.conf.HugePages {
		b.Limits.MemoryBytes = overhead // the pool's pages are not counted
	}
	var err error
	if b.Group, err = cgroup.Create(b.Spec.Cgroup, b.Limits); err != nil {
		return err
	}
	if b.jail == nil {
		if b.jail, err = newJail(b.Spec.Dir, d.program.Path, b.Spec.ID, microvm.UID(b.Spec.ID)); err != nil {
			return err
		}
	}
	if err := ownTAP(b.Spec.Link, microvm.UID(b.Spec.ID)); err != nil {
		return err
	}
	binds = append(binds, bind{b.Spec.Rootfs, rootPath})
	for i, p := range b.Spec.Disks {
		binds = append(binds, bind{p, diskPath(i)})
	}
	vm, err := d.start(ctx, b.jail, launch{
		id: b.Spec.ID, netns: b.Spec.Link.NetNS, fileBytes: mem + snapshotSlack, binds: binds, group: b.Group,
	})
	if err != nil {
		return err
	}
	b.vm, b.Machine = vm, vm
	return nil
}

// baseOf is the folder given to the jailer, which adds to it what newJail does.
func (d *Driver) baseOf(j *jail) string { return filepath.Dir(j.top) }

// configure describes the machine to the monitor.
func (d *Driver) configure(ctx context.Context, b *box) error {
	if err := d.configureBase(ctx, b.vm, memoryMiB(b), microvm.VCPUs(b.Resources.CPUMillis), b.GuestParams()); err != nil {
		return err
	}
	drive := func(id, path string) error {
		return b.vm.api.PutDrive(ctx, fcapi.Drive{ID: id, Path: path, ReadOnly: true, RateLimiter: d.conf.DiskRate})
	}
	if err := drive(rootDrive, rootPath); err != nil {
		return err
	}
	for i := range b.Spec.Disks {
		if err := drive(fmt.Sprintf("disk%d", i), diskPath(i)); err != nil {
			return err
		}
	}
	if err := b.vm.api.PutEntropy(ctx, fcapi.Entropy{}); err != nil {
		return err
	}
	if d.conf.Balloon {
		if err := b.vm.api.PutBalloon(ctx, fcapi.Balloon{
			AmountMiB: b.balloonMiB(), DeflateOnOOM: true, FreePageReporting: true,
		}); err != nil {
			return err
		}
	}
	err := b.vm.api.PutNetworkInterface(ctx, fcapi.NetworkInterface{
		ID: netCard, Device: b.Spec.Link.Interface, MAC: b.Spec.Link.MAC.String(), RX: d.conf.ReceiveRate, TX: d.conf.SendRate,
	})
	if err == nil && d.conf.MMDS != nil {
		if err = b.vm.api.PutMMDSConfig(ctx, fcapi.MMDSConfig{Version: fcapi.MMDSv2, Interfaces: []string{netCard}}); err == nil {
			err = b.vm.api.PutMMDS(ctx, d.conf.MMDS)
		}
	}
	return err
}

// balloonMiB is the balloon's size in a machine, which may be smaller than it.
func (b *box) balloonMiB() int64 { return min(b.d.conf.BalloonMiB, memoryMiB(b)/2) }

func (d *Driver) configureBase(ctx context.Context, v *vmm, memory, cpus int64, params []string) error {
	m := fcapi.MachineConfig{
		VCPUs: cpus, MemoryMiB: memory, CPUTemplate: d.conf.CPUTemplate,
		TrackDirtyPages: d.tracks(),
	}
	if d.conf.HugePages {
		m.HugePages = fcapi.HugePages2M
	}
	if err := v.api.PutMachineConfig(ctx, m); err != nil {
		return err
	}
	if d.cpuConfig != nil {
		if err := v.api.PutCPUConfig(ctx, d.cpuConfig); err != nil {
			return err
		}
	}
	return v.api.PutBootSource(ctx, fcapi.BootSource{
		Kernel: kernelPath, Initrd: initrdPath, Args: strings.Join(append(kernelParams(), params...), " "),
	})
}

// tracks says if written pages are tracked. With huge pages that would break
// them up.
func (d *Driver) tracks() bool { return !d.conf.NoDirtyTracking && !d.conf.HugePages }
