package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/internal/node/pace"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// errNoSnapshot means that there is nothing to restore from.
var errNoSnapshot = errors.New("there is no snapshot")

// errBootFaster means that there is, but that booting takes less time.
var errBootFaster = errors.New("booting is faster than restoring")

// restore starts an instance from a snapshot, a prepared one if there is. On
// errNoSnapshot and errBootFaster the instance has what it needs to boot, on any other error
// nothing is left.
func (n *Node) restore(ctx context.Context, i *Instance) (*Instance, error) {
	defer n.pool.poke()
	if p := n.pool.take(i.launch); p != nil {
		err := p.resume(ctx)
		if err == nil {
			return p, nil
		}
		p.clean(context.WithoutCancel(ctx))
		if ctx.Err() != nil {
			return i, err
		}
		// It may have grown old; the snapshot itself gets another chance.
		n.metrics.pool.WithLabelValues(poolFailed).Inc()
		n.cfg.Log.Warn("start a prepared sandbox", "id", p.id, "revision", p.launch.Revision, "error", err)
		i.phases = []sandbox.Phase{{Name: "restore-failed", Took: time.Since(i.clock)}}
		i.clock = time.Now()
		i.began = i.clock
	}
	err := i.prepare(ctx)
	if errors.Is(err, errNoSnapshot) || errors.Is(err, errBootFaster) {
		return i, err
	}
	if err == nil {
		err = i.resume(ctx)
	}
	if err == nil && !i.use.Record { // recording takes time of its own
		i.sample = i.starts.Note(pace.Restore, time.Since(i.began))
	}
	if err != nil {
		if i.use != nil && ctx.Err() == nil {
			i.use.Failed(err)
		}
		i.clean(context.WithoutCancel(ctx))
	}
	return i, err
}

// prepare does all of a restore that needs no request.
func (i *Instance) prepare(ctx context.Context) error {
	if err := i.acquire(ctx); err != nil {
		return err
	}
	s, ok := i.driver.(sandbox.Snapshotter)
	if !ok {
		return errNoSnapshot
	}
	if err := i.describe(ctx); err != nil {
		return err
	}
	mode := i.options.Mode
	use := i.node.cfg.Snapshots.Find(ctx, i.want, snapshots.Records(i.driver.Capabilities(), mode))
	if use == nil {
		return errNoSnapshot
	}
	if i.mayBoot() && !use.Record && i.starts.Choose(time.Now(), use.Boot) == pace.Boot {
		use.Release()
		i.have = true
		return errBootFaster
	}
	i.use = use
	i.onClean(func(context.Context) error { use.Release(); return nil })
	i.phase("snapshot")
	switch {
	case use.Record:
		mode = "" // the driver knows in which it can
	case mode == "" && i.pooled:
		mode = i.driver.Capabilities().PreparedMode
	}
	if err := i.journal(ctx); err != nil {
		return err
	}
	image := use.Image
	if use.Record {
		image.WorkingSet = "" // or what it has would not be recorded
	}
	box, err := s.Prepare(ctx, i.spec, sandbox.Restore{Image: image, Mode: mode, Record: use.Record, Ahead: i.pooled, Port: i.launch.Port})
	if err != nil {
		return i.explain(fmt.Errorf("prepare sandbox: %w", err))
	}
	i.sandbox, i.kind = box, Restored
	i.phase("prepare")
	return nil
}

// mayBoot tells whether it is to be booted where that is faster.
func (i *Instance) mayBoot() bool { return !i.pooled && !i.options.Always }

// resume has a prepared sandbox go on, up to ready.
func (i *Instance) resume(ctx context.Context) error {
	if err := i.sandbox.Start(ctx); err != nil {
		return i.explain(fmt.Errorf("restore: %w", err))
	}
	i.phase("resume")
	if err := i.tell(ctx, i.options.After); err != nil {
		return i.explain(fmt.Errorf("after-restore hook: %w", err))
	}
	if i.options.After != (snapshots.Hook{}) {
		i.phase("hook")
	}
	if err := i.ready(ctx); err != nil {
		return err
	}
	i.use.Worked()
	return nil
}

// describe finds out which snapshots fit the instance.
func (i *Instance) describe(ctx context.Context) error {
	if i.wanted {
		return nil
	}
	s, ok := i.driver.(sandbox.Snapshotter)
	if !ok {
		return fmt.Errorf("the sandbox driver %s can make no snapshots", i.driver.Name())
	}
	c, err := s.Compatibility(ctx, i.spec)
	if err != nil {
		return fmt.Errorf("snapshot: compatibility: %w", err)
	}
	l := &i.launch
	i.want = snapshots.NewWant(l.Namespace, l.Service, l.Revision, i.digest, i.driver.Name(), i.spec, c)
	if i.options.Policy != nil {
		i.want.Policy = i.options.Policy.String()
	}
	i.wanted = true
	return nil
}
