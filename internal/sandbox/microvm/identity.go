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
	b.conns.Reset()
	b.link.hold() // who wants the agent waits for Reconnect
	marks, err := agent.Suspend(ctx, b.Dialer(agent.Port), b.token)
	if err == nil {
		b.rest(ctx)
	}
	return b.token, marks, err
}

// How long a machine may take to come to rest, and what is rest: by how much
// its processor is used between two looks.
const (
	restTimeout = time.Second
	restLook    = 20 * time.Millisecond
	restUse     = restLook / 10
)

// rest waits until the guest has nothing to do, for a while. What it does as
// its connections end, every clone would have to do too, before its first
// request.
func (b *Box) rest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restTimeout)
	defer cancel()
	t := time.NewTicker(restLook)
	defer t.Stop()
	for last := time.Duration(-1); ; {
		s, err := b.Group.Stats()
		if err != nil || (last >= 0 && s.CPUTime-last < restUse) {
			return
		}
		last = s.CPUTime
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// Reconnect connects to the agent after a snapshot. Without it the sandbox is
// of no use, and is ended.
func (b *Box) Reconnect(ctx context.Context) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	b.link.release()
	if _, err := b.link.get(clean); err != nil {
		b.Machine.Kill()
		b.link.close()
		return err
	}
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
		b.token, b.marks = r.Token, marks
		b.openLink()
		b.AddPhases(sandbox.Phase{Name: "agent", Took: time.Since(begin)})
		// To come back to life is our work, not the function's: so the
		// processor is limited only now.
		return b.limitCPU()
	})
}
