package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
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

	preparing chan struct{} // lock of assets
	assets    *assets

	// booting has a place for each machine that may boot at the same time:
	// more than there are processors would only make all of them late, and
	// emulated clocks do not like to wait.
	booting chan struct{}

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
	if _, f, err := ocispec.OpenImage(spec.Rootfs); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	} else if err := f.Close(); err != nil {
		return nil, err
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

// boot fills in b, as far as it gets.
func (d *Driver) boot(ctx context.Context, b *box, accel Accel, a assets) error {
	begin := time.Now()
	if err := lock(ctx, d.booting); err != nil {
		return fmt.Errorf("wait for other machines to boot: %w", err)
	}
	defer unlock(d.booting)
	start := time.Now()
	m := machine{
		id: b.spec.ID, accel: accel, mac: b.spec.Link.MAC,
		memoryMiB: (b.resources.MemoryBytes + guestOverhead + mib - 1) / mib,
		cpus:      vcpus(b.resources.CPUMillis),
		guestParams: []string{
			"skep.address=" + b.spec.Link.Address.String(),
			"skep.gateway=" + b.spec.Link.Gateway.String(),
		},
	}
	if b.spec.Link.MTU > 0 {
		m.guestParams = append(m.guestParams, fmt.Sprintf("skep.mtu=%d", b.spec.Link.MTU))
	}
	// The processor is limited from Start on: booting is our work, not the
	// function's, and would take long on a part of one.
	b.limits = cgroup.Limits{MemoryBytes: m.memoryMiB*mib + qemuOverhead, PIDs: qemuThreads}
	if accel == AccelTCG {
		m.tscKHz = tscKHz()
		b.limits.MemoryBytes += codeMiB * mib
	}
	var err error
	if b.group, err = cgroup.Create(b.spec.Cgroup, b.limits); err != nil {
		return err
	}
	tap, err := openTAP(b.spec.Link)
	if err != nil {
		return err
	}
	defer tap.Close() //nolint:errcheck // QEMU has it
	root, err := os.Open(b.spec.Rootfs)
	if err != nil {
		return fmt.Errorf("rootfs: %w", err)
	}
	defer root.Close() //nolint:errcheck // QEMU has it
	if b.vm, err = d.start(ctx, m, a, b.group, root, tap); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-b.vm.dead
		cancel() // a machine that is gone does not even refuse
	}()
	if err := b.vm.awaitReady(ctx); err != nil {
		return err
	}
	listening := time.Now()
	pong, err := b.connect(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", err, b.vm.explain())
	}
	conf := &agentpb.ConfigureRequest{
		Hostname:    b.spec.Hostname,
		Address:     b.spec.Link.Address.IP.String(),
		DiskBytes:   uint64(b.resources.DiskBytes),
		MemoryBytes: uint64(b.resources.MemoryBytes),
		Pids:        uint64(b.resources.PIDs),
	}
	for _, ip := range b.spec.Link.DNS {
		conf.Dns = append(conf.Dns, ip.String())
	}
	if err := b.client.Configure(ctx, conf); err != nil {
		return err
	}
	b.bootPhases(begin, start, listening, time.Duration(pong.ReadyMicros)*time.Microsecond)
	return nil
}

// start starts QEMU in a cgroup; root and tap may be nil.
func (d *Driver) start(ctx context.Context, m machine, a assets, g *cgroup.Group, root, tap *os.File) (*vm, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close() //nolint:errcheck // QEMU has it
	var files []*os.File
	give := func(f *os.File) int {
		if f == nil {
			return 0
		}
		files = append(files, f)
		return len(files) + 2 // after the standard files
	}
	m.qmpFD = give(theirs)
	m.rootFD = give(root)
	m.tapFD = give(tap)
	for path, fd := range map[string]*int{a.kernel: &m.kernelFD, a.initrd: &m.initrdFD} {
		f, err := os.Open(path)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cache: %w", err), ours.Close())
		}
		defer f.Close() //nolint:errcheck // read only
		*fd = give(f)
	}
	return startVM(ctx, d.qemu, m, files, ours, g)
}

// connect connects to the agent, until the machine ends.
func (b *box) connect(ctx context.Context) (*agentpb.PingResponse, error) {
	var err error
	if b.client, err = agent.Connect(ctx, b.dialer(agent.Port), agent.NewToken()); err != nil {
		return nil, err
	}
	go func() {
		<-b.vm.dead
		_ = b.client.Close()
	}()
	return b.client.Ping(ctx)
}

// dialer dials a port of the guest.
func (b *box) dialer(port int) func(context.Context) (net.Conn, error) {
	addr := net.JoinHostPort(b.spec.Link.Address.IP.String(), fmt.Sprint(port))
	return func(ctx context.Context) (net.Conn, error) {
		return netns.Dial(ctx, b.spec.Link.DialNS, "tcp", addr)
	}
}
