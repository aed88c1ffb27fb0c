// Package microvm is what drivers of micro-VMs share: a sandbox whose inside is
// a virtual machine with skep-agent as its first process. What runs the
// machine, and how it is made, is the driver's.
package microvm

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// MachineMiB is the memory of the machine, in MiB, whose function may have
// functionBytes. Its kernel and agent take 72 MiB and 1/40 of it (struct page,
// and what the kernel keeps free). Were there less, the whole machine would be
// short of memory before the function is at its limit: it would stop, or the
// kernel panic, and nothing tell that it needs more.
func MachineMiB(functionBytes int64) int64 {
	const mib = 1 << 20
	return (functionBytes + functionBytes/32 + 80*mib + mib - 1) / mib
}

// cleanTimeout bounds what is done after a context has ended.
const cleanTimeout = 30 * time.Second

// CleanUp is a context for what must be done although ctx may have ended. It
// has a deadline of its own.
func CleanUp(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
}

// function is the agent's number for the function's process.
const function = 0

// Machine is what a Box must know of the process that runs its virtual machine.
// A Monitor is one.
type Machine interface {
	// Dead is closed when the process has ended and has been waited for.
	Dead() <-chan struct{}
	// Kill ends the process. It is safe at any time.
	Kill()
	// Explain says why the machine has ended, or does not answer.
	Explain() error
	// AwaitReady waits until the guest's agent listens.
	AwaitReady(ctx context.Context) error
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
	Origin    *Origin // nil: it was booted

	link  *link
	awake bool        // restored, and has been told who it is before Start
	token agent.Token // set when the agent has been reached, and not changed after Start
	marks agent.Marks // where the function's output begins, likewise

	destroying chan struct{} // lock of Destroy
	saving     chan struct{} // lock of Snapshot, and of freeing what it uses
	ended      chan struct{} // closed when the function has ended

	mu        sync.Mutex
	started   bool
	destroyed bool
	exit      sandbox.Exit // valid after ended
	phases    []sandbox.Phase
	conns     connSet
	mounts    map[int]mountedDisk // since the start
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
		destroying: make(chan struct{}, 1), saving: make(chan struct{}, 1), ended: make(chan struct{}),
		mounts: map[int]mountedDisk{},
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

// AddPhase records a step that took until now.
func (b *Box) AddPhase(name string, begin time.Time) {
	b.addPhases(sandbox.Phase{Name: name, Took: time.Since(begin)})
}

func (b *Box) addPhases(p ...sandbox.Phase) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.phases = append(b.phases, p...)
}

// Phases are queue (for other machines to boot), vmm, kernel and agent, and
// process after Start. Of a restored machine they are those that the driver
// added, ahead if Prepare had it run, and queue (for other machines), resume
// and agent after Start.
func (b *Box) Phases() []sandbox.Phase {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]sandbox.Phase(nil), b.phases...)
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

// until is ctx, but ends with done, too: a machine that is gone does not even
// refuse a connection.
func until(ctx context.Context, done <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-done:
			cancel(sandbox.ErrNotRunning)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// Lock takes a mutex that is a channel of one place, or of several, or gives up
// when ctx ends.
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
