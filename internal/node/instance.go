package node

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/node/logs"
	"github.com/skep-dev/skep/internal/node/pace"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Instance is one running sandbox of a revision.
type Instance struct {
	node    *Node
	launch  Launch
	driver  sandbox.Driver
	options snapshots.Options // of the launch, as far as the driver can
	kind    StartKind
	id      string
	digest  string // of the image
	spec    *sandbox.Spec
	sandbox sandbox.Sandbox
	log     *logs.Log
	phases  []sandbox.Phase
	clock   time.Time // when the last phase ended
	ahead   int       // the driver's phases that were over before the request came
	readyAt time.Time

	starts     *pace.Starts // of the revision
	sample     *pace.Sample // this one, if it counts
	began      time.Time
	took       time.Duration  // to boot; 0 if it was restored
	have       bool           // it was booted though there is a snapshot
	pooled     bool           // it was prepared for the pool
	memory     int64          // bytes that it takes there
	want       snapshots.Want // valid if wanted
	wanted     bool
	use        *snapshots.Use // what it was restored from, nil if it booted
	saveMu     sync.Mutex
	savedToEnd atomic.Bool // a snapshot was the end of it

	spare spare // of the readiness probe

	done chan struct{} // closed when the instance has ended and given all back
	exit sandbox.Exit  // valid then

	stopping sync.Once
	hurry    chan struct{} // closed by a Stop without grace
	hurrying sync.Once
	cleaning sync.Once
	undo     []func(context.Context) error // in the order acquired
}

// ID is the sandbox's.
func (i *Instance) ID() string { return i.id }

// Launch is what the instance was started with.
func (i *Instance) Launch() Launch { return i.launch }

// ReadyAt is when the instance became ready.
func (i *Instance) ReadyAt() time.Time { return i.readyAt }

// Kind is how the instance was started.
func (i *Instance) Kind() StartKind { return i.kind }

// StartKind is how an instance was started.
type StartKind string

// The kinds of start.
const (
	Booted   StartKind = "booted"
	Restored StartKind = "restored"
)

// Phases says how long each step to ready took, in order: those of the
// node, with the driver's own steps in place of "create" and "start" where
// it tells them.
func (i *Instance) Phases() []sandbox.Phase {
	inner := i.sandbox.Phases()
	inner = inner[min(i.ahead, len(inner)):]
	if len(inner) == 0 {
		return i.phases
	}
	var out []sandbox.Phase
	for _, p := range i.phases {
		switch p.Name {
		case "create", "prepare", "pool":
			if p.Name == "pool" {
				out = append(out, p)
			}
			out = append(out, inner...)
		case "start", "resume":
		default:
			out = append(out, p)
		}
	}
	return out
}

// Dial connects to the function's port.
func (i *Instance) Dial(ctx context.Context) (net.Conn, error) {
	if c := i.spare.take(); c != nil {
		return c, nil
	}
	return i.sandbox.Dial(ctx, i.launch.Port)
}

// Exec runs another process beside the function.
func (i *Instance) Exec(ctx context.Context, e sandbox.Exec) (sandbox.Exit, error) {
	return i.sandbox.Exec(ctx, e)
}

// Stats measures what the instance uses now.
func (i *Instance) Stats(ctx context.Context) (sandbox.Stats, error) { return i.sandbox.Stats(ctx) }

// Done is closed when the instance has ended, by itself or by Stop, and has
// given back all it held.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Exit says how the function's process ended. It is valid after Done.
func (i *Instance) Exit() sandbox.Exit { return i.exit }

// Tail returns the last lines the function printed.
func (i *Instance) Tail() []string { return i.log.Tail() }

// watch waits for the end of the process and cleans up after it.
func (i *Instance) watch() {
	ctx := context.Background()
	exit, err := i.sandbox.Wait(ctx)
	if err != nil {
		exit = sandbox.Exit{Code: 255, Reason: err.Error(), At: time.Now()}
	}
	i.exit = exit
	i.clean(ctx)
	i.node.mu.Lock()
	delete(i.node.instances, i.id)
	i.node.mu.Unlock()
	close(i.done)
}

// Stop asks the function to end with SIGTERM, gives it the grace, then kills
// it. It returns when all that the instance held is free, or ctx ends. A
// grace of 0 kills it at once, also if an earlier Stop was more patient.
func (i *Instance) Stop(ctx context.Context, grace time.Duration) error {
	if grace <= 0 {
		i.hurrying.Do(func() { close(i.hurry) })
	}
	i.stopping.Do(func() {
		go i.stop(context.WithoutCancel(ctx), grace)
	})
	select {
	case <-i.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *Instance) stop(ctx context.Context, grace time.Duration) {
	if grace > 0 {
		signalling, cancel := context.WithTimeout(ctx, min(grace, 5*time.Second))
		err := i.sandbox.Signal(signalling, syscall.SIGTERM)
		cancel()
		if err == nil {
			select {
			case <-i.done:
				return
			case <-i.hurry:
			case <-time.After(grace):
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	if err := i.sandbox.Destroy(ctx); err != nil {
		i.node.cfg.Log.Error("stop instance", "id", i.id, "error", err)
	}
}

// onClean adds a step to undo. Only start calls it.
func (i *Instance) onClean(f func(context.Context) error) { i.undo = append(i.undo, f) }

// clean undoes what start did, last first. It ends at a step that fails:
// the earlier ones (journal record, network) would pull the ground from under
// a sandbox that still lives. The record stays, and the next start of the
// node tries again.
func (i *Instance) clean(ctx context.Context) {
	i.cleaning.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
		defer cancel()
		for n := len(i.undo) - 1; n >= 0; n-- {
			if err := i.undo[n](ctx); err != nil {
				i.node.cfg.Log.Error("clean up after instance", "id", i.id, "error", err)
				return
			}
		}
	})
}
