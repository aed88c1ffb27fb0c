package microvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Origin is what a machine was made from that was not booted: a snapshot.
type Origin struct {
	// Saved is what the snapshot says of its machine.
	Saved *Saved
	// NewDisks says that what is behind the disks has changed.
	NewDisks bool
	// Run has the machine go on, and Stop has it stand still.
	Run, Stop func(context.Context) error
	// Places has one for each machine that may come back to life at the same
	// time; nil: as many as like to.
	Places chan struct{}
	// Settle is for how long after Start nobody listens to the function, unless
	// the agent is wanted for another reason: its first request goes before.
	Settle time.Duration
}

// Start starts the function's process, or has a restored machine go on, and
// limits the processor.
func (b *Box) Start(ctx context.Context) error {
	b.mu.Lock()
	bad := b.started || b.destroyed
	b.started = b.started || !bad // Destroy waits for the end of what started
	b.mu.Unlock()
	if bad {
		return b.wrap(errors.New("started already, or destroyed"))
	}
	begin := b.startProcess
	if b.Origin != nil {
		begin = b.resume
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

func (b *Box) startProcess(ctx context.Context) error {
	begin := time.Now()
	if err := b.limitCPU(); err != nil {
		return err
	}
	c, err := b.link.get(ctx)
	if err == nil {
		err = c.Start(ctx, process(b.Spec.Process))
	}
	if err != nil {
		return err
	}
	b.AddPhase("process", begin)
	return nil
}

func process(p sandbox.Process) *agentpb.Process {
	return &agentpb.Process{Args: p.Args, Env: p.Env, Cwd: p.Cwd, User: p.User}
}

// limitCPU limits the processor. Booting, and coming back to life, is our work,
// not the function's, and would take long on a part of one.
func (b *Box) limitCPU() error {
	l := b.Limits
	l.CPUMillis = b.Resources.CPUMillis
	_, err := cgroup.Create(b.Spec.Cgroup, l)
	return err
}

const (
	// resumeTimeout bounds the guest's first answer after a restore.
	resumeTimeout = time.Minute
	// probeTimeout bounds the connection that is made ahead.
	probeTimeout = 2 * time.Second
)

// Ahead does to a restored machine what Start does, connects to the function's
// port unless that is 0, and has the machine stand still again, for
// Restore.Ahead. What Start then does again takes no time to speak of: the guest
// has been through it, its pages are there, and where the processor is emulated,
// its code is translated. Of a first request that is most, too: taking the
// connection in.
func (b *Box) Ahead(ctx context.Context, port int) error {
	begin, before := time.Now(), len(b.Phases())
	if err := b.wake(ctx); err != nil {
		return b.wrap(err)
	}
	if port > 0 {
		b.probe(ctx, port)
	}
	b.rest(ctx)
	if err := b.Origin.Stop(ctx); err != nil {
		return b.wrap(fmt.Errorf("%w: %w", err, b.Machine.Explain()))
	}
	b.awake = true
	b.mu.Lock()
	b.phases = append(b.phases[:before], sandbox.Phase{Name: "ahead", Took: time.Since(begin)})
	b.mu.Unlock()
	return nil
}

// probe connects to a port of the guest. Whether somebody listens is for others
// to find out.
func (b *Box) probe(ctx context.Context, port int) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if c, err := b.dialer("tcp", port)(ctx); err == nil {
		_ = c.Close()
	}
}

// resume has a restored machine go on, as somebody else.
func (b *Box) resume(ctx context.Context) error {
	if err := b.wake(ctx); err != nil {
		return err
	}
	b.marks = b.Origin.Saved.Marks
	b.openLink()
	return b.limitCPU()
}

// wake has the machine go on, and its agent know who it is.
func (b *Box) wake(ctx context.Context) error {
	if b.Origin.Places != nil {
		begin := time.Now()
		if err := Lock(ctx, b.Origin.Places); err != nil {
			return fmt.Errorf("wait for other machines to go on: %w", err)
		}
		defer Unlock(b.Origin.Places)
		b.AddPhase("queue", begin)
	}
	ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	ctx, stop := until(ctx, b.Machine.Dead())
	defer stop()
	r := &agent.Restored{Token: agent.NewToken(), Hostname: b.Spec.Hostname}
	_, _ = rand.Read(r.Entropy[:]) // never fails
	_, _ = rand.Read(r.MachineID[:])
	known := b.token
	if !b.awake {
		known, r.NewDisks = agent.Token(b.Origin.Saved.Token), b.Origin.NewDisks
	}
	begin := time.Now()
	if err := b.Origin.Run(ctx); err != nil {
		return fmt.Errorf("%w: %w", err, b.Machine.Explain())
	}
	b.AddPhase("resume", begin)
	begin = time.Now()
	if err := agent.Resume(ctx, b.dialer("udp", agent.Port), known, r); err != nil {
		return fmt.Errorf("%w: %w", err, b.Machine.Explain())
	}
	b.token = r.Token
	b.AddPhase("agent", begin)
	return nil
}
