package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Snapshot has write write a snapshot's files, of these names, to o.Dir. There is
// one at a time. If write fails, the files are removed.
func (b *Box) Snapshot(ctx context.Context, o sandbox.SaveOptions, files []string, write func(context.Context) error) error {
	if err := b.Running(); err != nil {
		return err
	}
	if o.Diff && b.Origin == nil {
		return b.wrap(fmt.Errorf("a diff needs a sandbox that was restored: %w", sandbox.ErrUnsupported))
	}
	if err := Lock(ctx, b.saving); err != nil {
		return err
	}
	defer Unlock(b.saving)
	// The folder must be there before the machine stops for it.
	_, err := os.Stat(o.Dir)
	if err == nil {
		err = write(ctx)
	}
	if err == nil {
		return nil
	}
	for _, name := range files {
		if rerr := os.Remove(filepath.Join(o.Dir, name)); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if gone := b.Running(); gone != nil {
		return gone
	}
	return fmt.Errorf("%s: save sandbox %s: %w", b.Driver, b.Spec.ID, err)
}

// Suspended calls f while the guest is ready for a snapshot: no connection is
// left, and it is at rest. It returns what must be known to resume a machine
// that is restored from it.
func (b *Box) Suspended(ctx context.Context, f func() error) (agent.Token, agent.Marks, error) {
	b.conns.reset()
	b.link.hold() // who wants the agent waits
	marks, err := b.suspend(ctx)
	if err == nil {
		err = f()
	}
	// The agent before anything else: whoever waits for the sandbox waits for it.
	return b.token, marks, errors.Join(err, b.reconnect(ctx))
}

func (b *Box) suspend(ctx context.Context) (agent.Marks, error) {
	ctx, cancel := until(ctx, b.Machine.Dead())
	defer cancel()
	marks, err := agent.Suspend(ctx, b.dialer("tcp", agent.Port), b.token, func() { b.rest(ctx) })
	if err == nil {
		b.rest(ctx) // the agent's connection has ended too
	}
	return marks, err
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

// reconnect connects to the agent after a snapshot. Without it the sandbox is
// of no use, and is ended.
func (b *Box) reconnect(ctx context.Context) error {
	clean, cancel := CleanUp(ctx)
	defer cancel()
	b.link.release()
	if _, err := b.link.get(clean); err != nil {
		b.Machine.Kill()
		b.link.close()
		return err
	}
	return nil
}
