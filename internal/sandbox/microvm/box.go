// Package microvm is what drivers of micro-VMs share: a sandbox whose inside is
// a virtual machine with skep-agent as its first process. What runs the
// machine, and how it is made, is the driver's.
package microvm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// GuestOverhead is the memory of the machine that its kernel and agent take
// besides the function, in bytes.
const GuestOverhead = 64 << 20

// cleanTimeout bounds what is done after a context has ended.
const cleanTimeout = 30 * time.Second

// function is the agent's number for the function's process.
const function = 0

// Machine is the process that runs a virtual machine.
type Machine interface {
	// Dead is closed when the process has ended and has been waited for.
	Dead() <-chan struct{}
	// Kill ends the process. It is safe at any time.
	Kill()
	// Explain says why the machine has ended, or does not answer.
	Explain() error
	// OutOfMemory says if the machine ended because the guest's own kernel
	// could not go on for want of memory.
	OutOfMemory() bool
}

// Box is one machine with one function. It implements sandbox.Sandbox but for
// Destroy's last part, and sandbox.PortWaiter. A driver embeds it and sets the
// exported fields while it creates the machine; they do not change after.
type Box struct {
	Driver    string // its name, for errors
	Spec      *sandbox.Spec
	Resources sandbox.Resources
	Limits    cgroup.Limits // before Start; Start adds the processor's
	Group     *cgroup.Group
	Machine   Machine

	link  *link
	token agent.Token // set when the agent has been reached, and not changed after
	marks agent.Marks // where the function's output begins, likewise

	destroying chan struct{} // lock of Destroy
	ended      chan struct{} // closed when the function has ended

	mu        sync.Mutex
	started   bool
	destroyed bool
	exit      sandbox.Exit // valid after ended
	phases    []sandbox.Phase
	conns     ConnSet
}

var (
	_ sandbox.Sandbox    = (*Box)(nil)
	_ sandbox.PortWaiter = (*Box)(nil)
)

// New makes a box without a machine.
func New(driver string, spec *sandbox.Spec) *Box {
	s := *spec
	b := &Box{
		Driver: driver, Spec: &s, Resources: ocispec.Defaults(spec.Resources),
		destroying: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	b.link = newLink(b.connectAgent)
	b.link.hold() // until there is an agent
	return b
}

// ID is Spec.ID.
func (b *Box) ID() string { return b.Spec.ID }

func (b *Box) wrap(err error) error {
	return fmt.Errorf("%s: sandbox %s: %w", b.Driver, b.Spec.ID, err)
}

// AddPhases records what steps took.
func (b *Box) AddPhases(p ...sandbox.Phase) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.phases = append(b.phases, p...)
}

// Phases are those that the driver added, and after Start process, or resume
// and agent of a restored machine.
func (b *Box) Phases() []sandbox.Phase {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]sandbox.Phase(nil), b.phases...)
}

// Connect connects to the agent of a machine that has booted, until the
// machine ends, and gives it what it must know. It returns how long the agent
// took until it listened.
func (b *Box) Connect(ctx context.Context) (time.Duration, error) {
	b.token = agent.NewToken()
	b.openLink()
	c, err := b.link.get(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", err, b.Machine.Explain())
	}
	pong, err := c.Ping(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", err, b.Machine.Explain())
	}
	var id [agent.MachineIDSize]byte
	_, _ = rand.Read(id[:]) // never fails
	conf := &agentpb.ConfigureRequest{
		Hostname:    b.Spec.Hostname,
		MachineId:   hex.EncodeToString(id[:]),
		Address:     b.Spec.Link.Address.IP.String(),
		DiskBytes:   uint64(b.Resources.DiskBytes),
		MemoryBytes: uint64(b.Resources.MemoryBytes),
		Pids:        uint64(b.Resources.PIDs),
	}
	for _, ip := range b.Spec.Link.DNS {
		conf.Dns = append(conf.Dns, ip.String())
	}
	return time.Duration(pong.ReadyMicros) * time.Microsecond, c.Configure(ctx, conf)
}

// connectTimeout is how long the agent of a machine that lives may take to
// take a connection in: it gives up on each after a few seconds, in which a
// busy host may not bring in the pages that it needs for that.
const connectTimeout = 30 * time.Second

func (b *Box) connectAgent(ctx context.Context) (*agent.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		c, err := agent.Connect(ctx, b.Dialer(agent.Port), b.token)
		if err == nil {
			return c, nil
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-b.Machine.Dead():
			t.Stop()
			return nil, err
		case <-ctx.Done():
			t.Stop()
			return nil, err
		}
	}
}

// openLink makes connections to the agent possible, until the machine ends.
func (b *Box) openLink() {
	b.link.release()
	go func() {
		<-b.Machine.Dead()
		b.link.close()
	}()
}

// GuestParams are what the agent reads from the kernel's command line.
func (b *Box) GuestParams() []string {
	l := b.Spec.Link
	p := []string{"skep.address=" + l.Address.String(), "skep.gateway=" + l.Gateway.String()}
	if l.MTU > 0 {
		p = append(p, fmt.Sprintf("skep.mtu=%d", l.MTU))
	}
	return p
}

// Dialer dials a TCP port of the guest.
func (b *Box) Dialer(port int) func(context.Context) (net.Conn, error) { return b.dialer("tcp", port) }

func (b *Box) dialer(network string, port int) func(context.Context) (net.Conn, error) {
	addr := net.JoinHostPort(b.Spec.Link.Address.IP.String(), fmt.Sprint(port))
	return func(ctx context.Context) (net.Conn, error) {
		return netns.Dial(ctx, b.Spec.Link.DialNS, network, addr)
	}
}

// Start starts the function's process, and limits the processor.
func (b *Box) Start(ctx context.Context) error {
	return b.startWith(ctx, func(ctx context.Context) error {
		begin := time.Now()
		if err := b.limitCPU(); err != nil {
			return err
		}
		c, err := b.link.get(ctx)
		if err != nil {
			return err
		}
		if err := c.Start(ctx, process(b.Spec.Process)); err != nil {
			return err
		}
		b.AddPhases(sandbox.Phase{Name: "process", Took: time.Since(begin)})
		return nil
	})
}

// startWith is Start, with begin to bring the function to life.
func (b *Box) startWith(ctx context.Context, begin func(context.Context) error) error {
	b.mu.Lock()
	bad := b.started || b.destroyed
	b.started = b.started || !bad // Destroy waits for the end of what started
	b.mu.Unlock()
	if bad {
		return b.wrap(errors.New("started already, or destroyed"))
	}
	if err := begin(ctx); err != nil {
		err = b.wrap(err)
		b.Machine.Kill()
		b.end(sandbox.Exit{Code: 127, Reason: err.Error(), At: time.Now()})
		return err
	}
	go b.watch()
	return nil
}

func (b *Box) limitCPU() error {
	l := b.Limits
	l.CPUMillis = b.Resources.CPUMillis
	_, err := cgroup.Create(b.Spec.Cgroup, l)
	return err
}

func process(p sandbox.Process) *agentpb.Process {
	return &agentpb.Process{Args: p.Args, Env: p.Env, Cwd: p.Cwd, User: p.User}
}

// Running is nil if there is a function to talk to.
func (b *Box) Running() error {
	b.mu.Lock()
	started := b.started && !b.destroyed
	b.mu.Unlock()
	select {
	case <-b.ended:
		started = false
	default:
	}
	if !started {
		return b.wrap(sandbox.ErrNotRunning)
	}
	return nil
}

// failed explains a failure of the agent's.
func (b *Box) failed(err error) error {
	if err == nil {
		return nil
	}
	if gone := b.Running(); gone != nil {
		return gone
	}
	return b.wrap(err)
}

// Signal sends a signal to the function's process.
func (b *Box) Signal(ctx context.Context, sig os.Signal) error {
	if err := b.Running(); err != nil {
		return err
	}
	n, ok := sig.(syscall.Signal)
	if !ok {
		return b.wrap(fmt.Errorf("%v is not a Linux signal", sig))
	}
	c, err := b.link.get(ctx)
	if err == nil {
		err = c.Signal(ctx, function, uint32(n))
	}
	return b.failed(err)
}

// Wait waits for the function's end.
func (b *Box) Wait(ctx context.Context) (sandbox.Exit, error) {
	b.mu.Lock()
	started := b.started
	b.mu.Unlock()
	if !started {
		return sandbox.Exit{}, b.wrap(sandbox.ErrNotRunning)
	}
	select {
	case <-b.ended:
		return b.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// WaitPort learns from inside that a port is open.
func (b *Box) WaitPort(ctx context.Context, port int) error {
	if err := b.Running(); err != nil {
		return err
	}
	return b.failed(b.link.do(ctx, func(c *agent.Client) error { return c.WaitPort(ctx, uint16(port)) }))
}

// Dial connects to a port of the guest.
func (b *Box) Dial(ctx context.Context, port int) (net.Conn, error) {
	if err := b.Running(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A machine that has ended does not even refuse.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-b.ended:
			cancel(sandbox.ErrNotRunning)
		case <-stop:
		}
	}()
	c, err := b.Dialer(port)(ctx)
	if err != nil {
		return nil, b.failed(err)
	}
	return b.conns.Add(c)
}

// Stats measures the whole machine on the host.
func (b *Box) Stats(context.Context) (sandbox.Stats, error) {
	s, err := b.Group.Stats()
	if err != nil {
		return sandbox.Stats{}, b.failed(err)
	}
	return sandbox.Stats{MemoryBytes: s.MemoryBytes, CPUTime: s.CPUTime}, nil
}

// Mount mounts a disk, read-only, in the function's file system: disk 0 is
// Spec.Disks[0].
func (b *Box) Mount(ctx context.Context, disk int, target string) error {
	if err := b.Running(); err != nil {
		return err
	}
	if disk < 0 || disk >= len(b.Spec.Disks) {
		return b.wrap(fmt.Errorf("there is no disk %d", disk))
	}
	c, err := b.link.get(ctx)
	if err == nil {
		err = c.Mount(ctx, uint32(disk), target)
	}
	return b.failed(err)
}

// Destroy ends the machine and frees what the box holds.
func (b *Box) Destroy(ctx context.Context) error {
	return b.DestroyWith(ctx, func(context.Context) error { return nil })
}

// DestroyWith is Destroy, and frees what the driver holds once the machine has
// ended.
func (b *Box) DestroyWith(ctx context.Context, free func(context.Context) error) error {
	b.mu.Lock()
	b.destroyed = true
	b.mu.Unlock()
	if err := Lock(ctx, b.destroying); err != nil {
		return err
	}
	defer Unlock(b.destroying)
	var errs []error
	if b.Machine != nil {
		b.Machine.Kill()
		select {
		case <-b.Machine.Dead():
		case <-ctx.Done():
			errs = append(errs, ctx.Err())
		}
	}
	b.link.close()
	b.conns.Close()
	if b.Group != nil {
		errs = append(errs, b.Group.Kill(ctx), b.Group.Delete(ctx))
	}
	errs = append(errs, free(ctx))
	b.mu.Lock()
	started := b.started
	b.mu.Unlock()
	if started {
		select {
		case <-b.ended:
		case <-ctx.Done():
			errs = append(errs, ctx.Err())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: destroy sandbox %s: %w", b.Driver, b.Spec.ID, err)
	}
	return nil
}

// Lock takes a mutex that is a channel of one place, or gives up when ctx ends.
func Lock(ctx context.Context, mu chan struct{}) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case mu <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unlock frees what Lock took.
func Unlock(mu chan struct{}) { <-mu }
