package gvisor

import (
	"context"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/abi/linux"
	gvcontext "gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/fd"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/pkg/state"
)

// firstRun is what this process, a sandbox, does once, when its kernel is
// complete, new or restored, and before the function's code runs in it. All
// tasks wait for it: each is given work to do before it returns to that code.
// This needs a place where tasks come by as they are made or loaded, and the
// platform is one: it is asked for a context for each.
var firstRun struct {
	once sync.Once
	done atomic.Bool
	do   func(*kernel.Kernel) error
	hold chan struct{} // closed when the tasks may go on; nil: they may at once
}

// atFirstRun sets what is done at the first run. If it fails the sandbox dies.
func atFirstRun(do func(*kernel.Kernel) error) error {
	c, err := platform.Lookup(platformName)
	if err != nil {
		return err
	}
	firstRun.do = do
	platform.Register(platformName, &watchingConstructor{c})
	return nil
}

// holdFirstRun puts the first run off until the driver calls release: the
// kernel is complete then, and its tasks wait.
func holdFirstRun() {
	firstRun.hold = make(chan struct{})
	var once sync.Once
	handleCommand(releaseCommand, func(map[string]any, *fd.FD) error {
		once.Do(func() { close(firstRun.hold) })
		return nil
	})
}

// release has the tasks in the sandbox that is at socket go on.
func release(ctx context.Context, socket string) error {
	return command(ctx, socket, releaseCommand, nil, nil)
}

// watchingConstructor makes platforms that see the tasks.
type watchingConstructor struct{ platform.Constructor }

// New implements platform.Constructor.
func (c *watchingConstructor) New(opts platform.Options) (platform.Platform, error) {
	p, err := c.Constructor.New(opts)
	if err != nil {
		return nil, err
	}
	return &watchingPlatform{p}, nil
}

type watchingPlatform struct{ platform.Platform }

// NewContext implements platform.Platform.
func (p *watchingPlatform) NewContext(ctx gvcontext.Context) platform.Context {
	if !firstRun.done.Load() {
		if t := kernel.TaskFromContext(ctx); t != nil {
			t.RegisterWork(&firstWork{})
		}
	}
	return p.Platform.NewContext(ctx)
}

// firstWork is a task's work before it returns to the function's code. It may
// become part of a snapshot.
type firstWork struct{ _ byte }

// TaskWork implements kernel.TaskWorker.
func (*firstWork) TaskWork(t *kernel.Task) {
	if firstRun.hold != nil {
		t.UninterruptibleSleepStart()
		<-firstRun.hold
		t.UninterruptibleSleepFinish()
	}
	firstRun.once.Do(func() {
		k := t.Kernel()
		if err := firstRun.do(k); err != nil {
			log.Warningf("Killing the sandbox: %v", err)
			k.Kill(linux.WaitStatusTerminationSignal(linux.SIGKILL))
		}
		firstRun.done.Store(true)
	})
}

// StateTypeName implements state.Type.
func (*firstWork) StateTypeName() string { return "skep/internal/sandbox/gvisor.firstWork" }

// StateFields implements state.Type.
func (*firstWork) StateFields() []string { return nil }

// StateSave implements state.SaverLoader.
func (*firstWork) StateSave(state.Sink) {}

// StateLoad implements state.SaverLoader.
func (*firstWork) StateLoad(context.Context, state.Source) {}

func init() { state.Register((*firstWork)(nil)) }
