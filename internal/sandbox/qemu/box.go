package qemu

import (
	"context"
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
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// function is the agent's number for the function's process.
const function = 0

// box is one machine. It implements sandbox.Sandbox and sandbox.PortWaiter.
type box struct {
	spec      *sandbox.Spec
	resources sandbox.Resources
	limits    cgroup.Limits // before Start

	// Set while it is being created, and not changed after.
	group *cgroup.Group
	vm    *vm
	saved savedState // what a snapshot would say of it
	image *image     // what it was restored from, nil if booted
	link  *link

	// Set when the agent has been reached, and not changed after.
	token agent.Token
	marks agent.Marks // where the function's output begins

	destroying chan struct{} // lock of Destroy
	saving     chan struct{} // lock of Save
	ended      chan struct{} // closed when the function has ended

	mu        sync.Mutex
	started   bool
	destroyed bool
	exit      sandbox.Exit // valid after ended
	phases    []sandbox.Phase
	conns     microvm.ConnSet
}

var (
	_ sandbox.Sandbox    = (*box)(nil)
	_ sandbox.PortWaiter = (*box)(nil)
)

func newBox(spec *sandbox.Spec) *box {
	s := *spec
	b := &box{
		spec: &s, resources: ocispec.Defaults(spec.Resources),
		destroying: make(chan struct{}, 1), saving: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	b.link = newLink(func(ctx context.Context) (*agent.Client, error) {
		return agent.Connect(ctx, b.dialer(agent.Port), b.token)
	})
	b.link.hold() // until there is an agent
	return b
}

// ID is Spec.ID.
func (b *box) ID() string { return b.spec.ID }

// bootPhases records what Create took: agentTook is what the agent says it
// needed until it listened.
func (b *box) bootPhases(begin, start, listening time.Time, agentTook time.Duration) {
	kernel := listening.Sub(b.vm.greeted)
	agentTook = min(max(agentTook, 0), kernel)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.phases = []sandbox.Phase{
		{Name: "queue", Took: start.Sub(begin)},
		{Name: "vmm", Took: b.vm.greeted.Sub(start)},
		{Name: "kernel", Took: kernel - agentTook},
		{Name: "agent", Took: agentTook + time.Since(listening)},
	}
}

func (b *box) addPhase(name string, begin time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.phases = append(b.phases, sandbox.Phase{Name: name, Took: time.Since(begin)})
}

// Phases are queue (for other machines to boot), vmm, kernel and agent, and
// process after Start. Of a restored machine they are vmm and load, and resume
// and agent after Start.
func (b *box) Phases() []sandbox.Phase {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]sandbox.Phase(nil), b.phases...)
}

// Start starts the function's process, or has a prepared machine go on, and
// limits the processor.
func (b *box) Start(ctx context.Context) error {
	b.mu.Lock()
	bad := b.started || b.destroyed
	b.started = b.started || !bad // Destroy waits for the end of what started
	b.mu.Unlock()
	if bad {
		return fmt.Errorf("qemu: sandbox %s: started already, or destroyed", b.spec.ID)
	}
	err := b.start(ctx)
	if err != nil {
		err = fmt.Errorf("qemu: sandbox %s: %w", b.spec.ID, err)
		b.vm.kill()
		b.end(sandbox.Exit{Code: 127, Reason: err.Error(), At: time.Now()})
		return err
	}
	go b.watch()
	return nil
}

func (b *box) start(ctx context.Context) error {
	if b.image != nil {
		// To come back to life is our work, not the function's.
		if err := b.resume(ctx); err != nil {
			return err
		}
		return b.limitCPU()
	}
	begin := time.Now()
	if err := b.limitCPU(); err != nil {
		return err
	}
	c, err := b.link.get(ctx)
	if err == nil {
		err = c.Start(ctx, process(b.spec.Process))
	}
	if err != nil {
		return err
	}
	b.addPhase("process", begin)
	return nil
}

func (b *box) limitCPU() error {
	l := b.limits
	l.CPUMillis = b.resources.CPUMillis
	_, err := cgroup.Create(b.spec.Cgroup, l)
	return err
}

func process(p sandbox.Process) *agentpb.Process {
	return &agentpb.Process{Args: p.Args, Env: p.Env, Cwd: p.Cwd, User: p.User}
}

// running says if there is a function to talk to.
func (b *box) running() error {
	b.mu.Lock()
	started := b.started && !b.destroyed
	b.mu.Unlock()
	select {
	case <-b.ended:
		started = false
	default:
	}
	if !started {
		return fmt.Errorf("qemu: sandbox %s: %w", b.spec.ID, sandbox.ErrNotRunning)
	}
	return nil
}

// failed explains a failure of the agent's.
func (b *box) failed(err error) error {
	if err == nil {
		return nil
	}
	if gone := b.running(); gone != nil {
		return gone
	}
	return fmt.Errorf("qemu: sandbox %s: %w", b.spec.ID, err)
}

// Signal sends a signal to the function's process.
func (b *box) Signal(ctx context.Context, sig os.Signal) error {
	if err := b.running(); err != nil {
		return err
	}
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("qemu: %v is not a Linux signal", sig)
	}
	c, err := b.link.get(ctx)
	if err == nil {
		err = c.Signal(ctx, function, uint32(n))
	}
	return b.failed(err)
}

// Wait waits for the function's end.
func (b *box) Wait(ctx context.Context) (sandbox.Exit, error) {
	b.mu.Lock()
	started := b.started
	b.mu.Unlock()
	if !started {
		return sandbox.Exit{}, fmt.Errorf("qemu: sandbox %s: %w", b.spec.ID, sandbox.ErrNotRunning)
	}
	select {
	case <-b.ended:
		return b.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// WaitPort learns from inside that a port is open.
func (b *box) WaitPort(ctx context.Context, port int) error {
	if err := b.running(); err != nil {
		return err
	}
	return b.failed(b.link.do(ctx, func(c *agent.Client) error { return c.WaitPort(ctx, uint16(port)) }))
}

// Dial connects to a port of the guest.
func (b *box) Dial(ctx context.Context, port int) (net.Conn, error) {
	if err := b.running(); err != nil {
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
	c, err := b.dialer(port)(ctx)
	if err != nil {
		return nil, b.failed(err)
	}
	return b.conns.Add(c)
}

// Stats measures the whole machine on the host.
func (b *box) Stats(context.Context) (sandbox.Stats, error) {
	s, err := b.group.Stats()
	if err != nil {
		return sandbox.Stats{}, b.failed(err)
	}
	return sandbox.Stats{MemoryBytes: s.MemoryBytes, CPUTime: s.CPUTime}, nil
}

// Mount mounts a disk, read-only, in the function's file system: disk 0 is
// Spec.Disks[0].
func (b *box) Mount(ctx context.Context, disk int, target string) error {
	if err := b.running(); err != nil {
		return err
	}
	if disk < 0 || disk >= len(b.spec.Disks) {
		return fmt.Errorf("qemu: sandbox %s: there is no disk %d", b.spec.ID, disk)
	}
	c, err := b.link.get(ctx)
	if err == nil {
		err = c.Mount(ctx, uint32(disk), target)
	}
	return b.failed(err)
}

// Destroy ends the machine and frees what it held.
func (b *box) Destroy(ctx context.Context) error {
	b.mu.Lock()
	b.destroyed = true
	b.mu.Unlock()
	if err := lock(ctx, b.destroying); err != nil {
		return err
	}
	defer unlock(b.destroying)
	var errs []error
	if b.vm != nil {
		b.vm.kill()
		errs = append(errs, b.vm.wait(ctx), ignoreClosed(b.vm.qmp.Close()))
	}
	b.link.close()
	b.conns.Close()
	if b.image != nil {
		errs = append(errs, b.image.close(ctx))
	}
	if b.vm != nil && b.vm.memory != nil {
		errs = append(errs, b.vm.memory.Close())
		b.vm.memory = nil
	}
	if b.group != nil {
		errs = append(errs, b.group.Kill(ctx), b.group.Delete(ctx))
	}
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
		return fmt.Errorf("qemu: destroy sandbox %s: %w", b.spec.ID, err)
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
