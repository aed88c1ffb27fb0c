package qemu

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/qemu/guestkernel"
)

// Name of the driver.
const Name = "qemu"

// What a machine takes besides the function's memory.
const (
	// guestOverhead is for the guest's kernel and agent, in its memory.
	guestOverhead = 64 * mib
	// qemuOverhead is for QEMU itself, translated code not included.
	qemuOverhead = 96 * mib
	// qemuThreads bounds QEMU's threads; it makes some for each disk request.
	qemuThreads = 256
)

// cleanTimeout bounds what is done after a context has ended.
const cleanTimeout = 30 * time.Second

// Driver makes micro-VMs. It implements sandbox.Driver.
type Driver struct {
	log      *slog.Logger
	qemu     string
	kernel   guestkernel.Kernel
	agent    []byte
	cacheDir string
	// kernelArgs are appended to the guest kernel's.
	kernelArgs []string

	preparing chan struct{} // lock of assets
	assets    *assets

	// booting has a place for each machine that may boot at the same time:
	// more than there are processors would only make all of them late, and
	// emulated clocks do not like to wait.
	booting chan struct{}

	asking  chan struct{} // lock of version
	version string        // QEMU's, "" until it is known

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
	a, err := d.prepare(ctx)
	if err != nil {
		return nil, err
	}
	b := newBox(spec)
	if err := d.boot(ctx, b, accel, a); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("qemu: sandbox %s: %w", spec.ID, err), b.Destroy(clean))
	}
	return b, nil
}

// machine is what a box needs, but for the descriptors.
func (b *box) machine(accel Accel) machine {
	m := machine{
		id: b.spec.ID, accel: accel, mac: b.spec.Link.MAC,
		memoryMiB: (b.resources.MemoryBytes + guestOverhead + mib - 1) / mib,
		cpus:      vcpus(b.resources.CPUMillis),
		guestParams: []string{
			"skep.address=" + b.spec.Link.Address.String(),
			"skep.gateway=" + b.spec.Link.Gateway.String(),
			fmt.Sprintf("skep.disks=%d", len(b.spec.Disks)),
		},
	}
	if b.spec.Link.MTU > 0 {
		m.guestParams = append(m.guestParams, fmt.Sprintf("skep.mtu=%d", b.spec.Link.MTU))
	}
	if accel == AccelTCG {
		m.tscKHz = tscKHz()
	}
	return m
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
func (d *Driver) boot(ctx context.Context, b *box, accel Accel, a assets) error {
	begin := time.Now()
	version, err := d.qemuVersion(ctx)
	if err != nil {
		return err
	}
	if err := lock(ctx, d.booting); err != nil {
		return fmt.Errorf("wait for other machines to boot: %w", err)
	}
	defer unlock(d.booting)
	start := time.Now()
	m := b.machine(accel)
	m.guestParams = append(m.guestParams, d.kernelArgs...)
	m.assets = a
	b.limits = m.limits()
	if b.group, err = cgroup.Create(b.spec.Cgroup, b.limits); err != nil {
		return err
	}
	files, err := openFiles(b.spec)
	if err != nil {
		return err
	}
	defer files.close()
	if b.saved, err = files.describe(m.describe(version, b.spec)); err != nil {
		return err
	}
	memory, err := newMemory(m.memoryMiB * mib)
	if err != nil {
		return err
	}
	if b.vm, err = d.start(ctx, m, files, memory, b.group); err != nil {
		return errors.Join(err, memory.Close())
	}
	b.vm.memory = memory
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := b.vm.whenDead(cancel)
	defer stop()
	if err := b.vm.awaitReady(ctx); err != nil {
		return err
	}
	listening := time.Now()
	pong, err := b.connect(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", err, b.vm.explain())
	}
	var id [agent.MachineIDSize]byte
	_, _ = rand.Read(id[:]) // never fails
	conf := &agentpb.ConfigureRequest{
		Hostname:    b.spec.Hostname,
		MachineId:   hex.EncodeToString(id[:]),
		Address:     b.spec.Link.Address.IP.String(),
		DiskBytes:   uint64(b.resources.DiskBytes),
		MemoryBytes: uint64(b.resources.MemoryBytes),
		Pids:        uint64(b.resources.PIDs),
	}
	for _, ip := range b.spec.Link.DNS {
		conf.Dns = append(conf.Dns, ip.String())
	}
	c, err := b.link.get(ctx)
	if err == nil {
		err = c.Configure(ctx, conf)
	}
	if err != nil {
		return err
	}
	b.bootPhases(begin, start, listening, time.Duration(pong.ReadyMicros)*time.Microsecond)
	return nil
}

// connect connects to the agent for the first time.
func (b *box) connect(ctx context.Context) (*agentpb.PingResponse, error) {
	b.token = agent.NewToken()
	b.openLink()
	c, err := b.link.get(ctx)
	if err != nil {
		return nil, err
	}
	return c.Ping(ctx)
}

// openLink makes connections to the agent possible, until the machine ends.
func (b *box) openLink() {
	b.link.release()
	go func() {
		<-b.vm.dead
		b.link.close()
	}()
}

// dialer dials a port of the guest.
func (b *box) dialer(port int) func(context.Context) (net.Conn, error) {
	return b.netDialer("tcp", port)
}

func (b *box) netDialer(kind string, port int) func(context.Context) (net.Conn, error) {
	addr := net.JoinHostPort(b.spec.Link.Address.IP.String(), fmt.Sprint(port))
	return func(ctx context.Context) (net.Conn, error) {
		return netns.Dial(ctx, b.spec.Link.DialNS, kind, addr)
	}
}
