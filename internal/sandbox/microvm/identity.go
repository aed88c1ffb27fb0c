package microvm

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/sandbox"
)

// resumeTimeout bounds the guest's first answer after a restore.
const resumeTimeout = time.Minute

// Suspend makes the guest ready for a snapshot: no connection is left. What it
// returns must be known to resume a restored machine. Whatever comes of the
// snapshot, Reconnect must follow.
func (b *Box) Suspend(ctx context.Context) (agent.Token, agent.Marks, error) {
	b.conns.reset()
	b.link.set(nil) // who wants the agent waits for Reconnect
	marks, err := agent.Suspend(ctx, b.Dialer(agent.Port), b.token)
	return b.token, marks, err
}

// Reconnect connects to the agent after a snapshot. Without it the sandbox is
// of no use, and is ended.
func (b *Box) Reconnect(ctx context.Context) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	c, err := agent.Connect(clean, b.Dialer(agent.Port), b.token)
	if err != nil {
		b.Machine.Kill()
		b.link.close()
		return err
	}
	b.link.set(c)
	return nil
}

// Resume is Start for a machine that was made from a snapshot: run has it go
// on; then it is made somebody else. newDisks says that what is behind the
// disks has changed.
func (b *Box) Resume(ctx context.Context, token agent.Token, marks agent.Marks, newDisks bool, run func(context.Context) error) error {
	return b.startWith(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
		defer cancel()
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			select {
			case <-b.Machine.Dead():
				cancel()
			case <-stop:
			}
		}()
		begin := time.Now()
		r := &agent.Restored{Token: agent.NewToken(), Hostname: b.Spec.Hostname, NewDisks: newDisks}
		_, _ = rand.Read(r.Entropy[:]) // never fails
		_, _ = rand.Read(r.MachineID[:])
		if err := run(ctx); err != nil {
			return fmt.Errorf("%w: %w", err, b.Machine.Explain())
		}
		b.AddPhases(sandbox.Phase{Name: "resume", Took: time.Since(begin)})
		begin = time.Now()
		if err := agent.Resume(ctx, b.dialer("udp", agent.Port), token, r); err != nil {
			return fmt.Errorf("%w: %w", err, b.Machine.Explain())
		}
		c, err := agent.Connect(ctx, b.Dialer(agent.Port), r.Token)
		if err != nil {
			return fmt.Errorf("%w: %w", err, b.Machine.Explain())
		}
		b.token, b.marks = r.Token, marks
		b.setClient(c)
		b.AddPhases(sandbox.Phase{Name: "agent", Took: time.Since(begin)})
		// To come back to life is our work, not the function's: so the
		// processor is limited only now.
		return b.limitCPU()
	})
}
