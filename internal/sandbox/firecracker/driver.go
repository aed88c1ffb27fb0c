package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

const (
	mib = 1 << 20
	// overhead is for Firecracker itself, in bytes.
	overhead = 48 * mib
	// threads bounds Firecracker's: one for each processor, the API, devices.
	threads = 64
	// snapshotSlack is what a snapshot's largest file can be beyond the memory.
	snapshotSlack = 16 * mib
	// probeMemoryMiB is a probe's.
	probeMemoryMiB = 128
	// probeTimeout is how long a machine may take to boot: many times what it
	// needs. One that hangs has no KVM worth the name.
	probeTimeout = 30 * time.Second
	// cleanTimeout bounds what is done after a context has ended.
	cleanTimeout = 30 * time.Second
)

// Names of devices. Snapshots know them.
const (
	rootDrive = "root"
	netCard   = "net"
)

// kernelParams are the guest kernel's, as the qemu driver's where the machine
// does not differ: no clock chip to look for, a keyboard controller that is
// there only to end the machine by.
var kernelParams = []string{
	"console=ttyS0", "quiet",
	"reboot=k", "panic=-1", // what Firecracker ends on
	"i8042.noaux", "i8042.nomux", "i8042.nopnp", "i8042.dumbkbd",
	"cryptomgr.notests", "mitigations=off", "init_on_alloc=0", "audit=0", "lsm=", "rodata=off",
	"nowatchdog", "8250.nr_uarts=1", "pci=off", "ipv6.disable_ipv6=1", "random.trust_cpu=on",
}

// Driver makes micro-VMs. It implements sandbox.Driver.
type Driver struct {
	conf            Config
	log             *slog.Logger
	program, jailer string
	cpuConfig       fcapi.CPUConfig // nil: none
	files           *microvm.BootFiles

	// booting has a place for each machine that may boot at the same time.
	booting chan struct{}

	versions chan struct{} // lock of version
	version  string
}

var _ sandbox.Driver = (*Driver)(nil)

// Name is "firecracker".
func (d *Driver) Name() string { return Name }

// Capabilities are what Firecracker has wherever it works.
func (d *Driver) Capabilities() sandbox.Capabilities {
	return sandbox.Capabilities{
		Link:                   sandbox.LinkTAP,
		HardwareVirtualization: true,
		OwnKernel:              true,
		Snapshot:               true,
		RestoreModes:           slices.Clone(restoreModes),
		LayeredSnapshot:        true,
		OnDemandMemory:         true,
		BlockDevices:           true,
		RootfsXattrs:           true,
	}
}

// baseOf is the folder given to the jailer, which adds to it what newJail does.
func (d *Driver) baseOf(j *jail) string { return filepath.Dir(j.top) }

// box is one machine.
type box struct {
	*microvm.Box
	d    *Driver
	vm   *vmm
	jail *jail

	// Of a machine that was restored.
	from     *savedMachine
	image    *image
	newDisks bool
	paging   *paging // nil: its memory is mapped

	saving  chan struct{} // lock of Save and of the following
	history []*os.File    // memory that was written since it was made, oldest first
	lost    bool          // history is not complete
}

func (d *Driver) newBox(spec *sandbox.Spec) *box {
	return &box{Box: microvm.New(Name, spec), d: d, saving: make(chan struct{}, 1)}
}

// Destroy ends the machine and frees what it held.
func (b *box) Destroy(ctx context.Context) error {
	return b.DestroyWith(ctx, func(ctx context.Context) error {
		if b.vm != nil {
			b.vm.api.Close()
		}
		if b.paging != nil {
			select {
			case <-b.paging.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := microvm.Lock(ctx, b.saving); err != nil {
			return err
		}
		defer microvm.Unlock(b.saving)
		var errs []error
		if b.image != nil {
			errs = append(errs, b.image.close())
		}
		for _, f := range b.history {
			errs = append(errs, f.Close())
		}
		b.history = nil
		if b.jail != nil {
			errs = append(errs, b.jail.remove())
		}
		return errors.Join(errs...)
	})
}

// Create boots a machine up to the point where its agent waits for the
// function's process.
func (d *Driver) Create(ctx context.Context, spec *sandbox.Spec) (sandbox.Sandbox, error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	b := d.newBox(spec)
	if err := d.boot(ctx, b); err != nil {
		return nil, d.discard(ctx, b, err)
	}
	return b, nil
}

func check(spec *sandbox.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	_, f, err := ocispec.OpenImage(spec.Rootfs)
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	return f.Close()
}

// discard frees what a box that failed holds already.
func (d *Driver) discard(ctx context.Context, b *box, err error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	return errors.Join(fmt.Errorf("firecracker: sandbox %s: %w", b.Spec.ID, err), b.Destroy(clean))
}

func memoryMiB(b *box) int64 {
	n := (b.Resources.MemoryBytes + microvm.GuestOverhead + mib - 1) / mib
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
		if b.jail, err = newJail(b.Spec.Dir, d.program, b.Spec.ID, microvm.UID(b.Spec.ID)); err != nil {
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

// boot fills in b, as far as it gets.
func (d *Driver) boot(ctx context.Context, b *box) error {
	kernel, initrd, err := d.files.Prepare(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := microvm.Lock(ctx, d.booting); err != nil {
		return fmt.Errorf("wait for other machines to boot: %w", err)
	}
	defer microvm.Unlock(d.booting)
	start := time.Now()
	// The processor is limited from Start on: booting is our work, not the
	// function's, and would take long on a part of one.
	if err := d.prepareMonitor(ctx, b, []bind{{kernel, kernelPath}, {initrd, initrdPath}}); err != nil {
		return err
	}
	if err := d.configure(ctx, b); err != nil {
		return fmt.Errorf("%w; %w", err, b.vm.Explain())
	}
	configured := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-b.vm.dead:
			cancel() // a machine that is gone does not even refuse
		case <-stop:
		}
	}()
	if err := b.vm.api.Act(ctx, fcapi.InstanceStart); err != nil {
		return fmt.Errorf("%w; %w", err, b.vm.Explain())
	}
	if err := b.vm.awaitReady(ctx); err != nil {
		return err
	}
	listening := time.Now()
	agentTook, err := b.Connect(ctx)
	if err != nil {
		return err
	}
	kernelTook := listening.Sub(configured)
	agentTook = min(max(agentTook, 0), kernelTook)
	b.AddPhases(
		sandbox.Phase{Name: "queue", Took: start.Sub(begin)},
		sandbox.Phase{Name: "vmm", Took: configured.Sub(start)},
		sandbox.Phase{Name: "kernel", Took: kernelTook - agentTook},
		sandbox.Phase{Name: "agent", Took: agentTook + time.Since(listening)},
	)
	return nil
}

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
	if d.conf.Balloon {
		if err := b.vm.api.PutBalloon(ctx, fcapi.Balloon{DeflateOnOOM: true, FreePageReporting: true}); err != nil {
			return err
		}
	}
	return b.vm.api.PutNetworkInterface(ctx, fcapi.NetworkInterface{
		ID: netCard, Device: b.Spec.Link.Interface, MAC: b.Spec.Link.MAC.String(), RX: d.conf.ReceiveRate, TX: d.conf.SendRate,
	})
}

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
		Kernel: kernelPath, Initrd: initrdPath, Args: strings.Join(append(append([]string(nil), kernelParams...), params...), " "),
	})
}

// tracks says if written pages are tracked. With huge pages that would break
// them up.
func (d *Driver) tracks() bool { return !d.conf.NoDirtyTracking && !d.conf.HugePages }

// Probe boots a machine up to its agent, and so proves KVM, Firecracker,
// jailer, kernel, modules and agent.
func (d *Driver) Probe(ctx context.Context, scratch sandbox.State) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("firecracker: probe: %w", err)
		}
	}()
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		return fmt.Errorf("no KVM: %w", err)
	} else if err := f.Close(); err != nil {
		return err
	}
	kernel, initrd, err := d.files.Prepare(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	g, err := cgroup.Create(scratch.Cgroup, cgroup.Limits{MemoryBytes: probeMemoryMiB*mib + overhead, PIDs: threads})
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		err = errors.Join(err, g.Kill(clean), g.Delete(clean))
	}()
	j, err := newJail(scratch.Dir, d.program, scratch.ID, microvm.UID(scratch.ID))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.remove()) }()
	v, err := d.start(ctx, j, launch{
		id: scratch.ID, fileBytes: snapshotSlack, binds: []bind{{kernel, kernelPath}, {initrd, initrdPath}}, group: g,
	})
	if err != nil {
		return err
	}
	defer v.end()
	err = d.configureBase(ctx, v, probeMemoryMiB, 1, []string{"skep.probe"})
	if err == nil {
		err = v.api.Act(ctx, fcapi.InstanceStart)
	}
	if err != nil {
		return fmt.Errorf("%w; %w", err, v.Explain())
	}
	return v.awaitReady(ctx)
}

// Reap ends the machine with this state, if there is one, and removes its jail.
// Its process is in its cgroup, but for its first moments: so it is also looked
// for by its arguments.
func (d *Driver) Reap(ctx context.Context, s sandbox.State) error {
	if err := d.reap(ctx, s); err != nil {
		return fmt.Errorf("firecracker: reap sandbox %s: %w", s.ID, err)
	}
	return nil
}

func (d *Driver) reap(ctx context.Context, s sandbox.State) error {
	g, err := cgroup.Load(s.Cgroup)
	if err != nil {
		return err
	}
	err = microvm.KillMatching(ctx, func(args []string) bool {
		for i, a := range args {
			if a == "--id="+s.ID || (a == s.ID && i > 0 && args[i-1] == "--id") {
				return true
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	// Also those that another release of Firecracker, with another name, made.
	jails, err := filepath.Glob(filepath.Join(s.Dir, "*", s.ID, "root"))
	if err != nil {
		return err
	}
	errs := []error{g.Kill(ctx), g.Delete(ctx)}
	for _, j := range jails {
		errs = append(errs, os.RemoveAll(filepath.Dir(filepath.Dir(j))))
	}
	return errors.Join(errs...)
}
