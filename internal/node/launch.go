package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/node/logs"
	"github.com/skep-dev/skep/internal/node/pace"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Launch describes an instance to start.
type Launch struct {
	Namespace, Service, Revision string

	Image  string // reference pinned by digest, in the node's store
	Driver string
	Egress bool

	// What a container in a Knative service may set; empty means the image's own.
	Command, Args []string
	Env           []string // added to the image's
	WorkingDir    string
	User          string

	Port      int
	Probe     Probe
	Resources sandbox.Resources
	// StartTimeout bounds the time from Launch to ready.
	StartTimeout time.Duration
	// Snapshot says how snapshots are made and used.
	Snapshot snapshots.Options
}

// Launch starts an instance and returns once it is ready: from a snapshot if
// there is one, else by booting, also if restoring failed. The error is a
// *StartError if the cause is the function or its image. Nothing is left
// behind on error.
func (n *Node) Launch(ctx context.Context, l Launch) (*Instance, error) {
	leave, err := n.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, l.StartTimeout)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	driver, options, err := n.options(&l)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	inst := n.newInstance(l, driver, options)
	if options.Restore {
		var err error
		inst, err = n.restore(ctx, inst)
		if err == nil {
			n.add(inst)
			return inst, nil
		}
		if ctx.Err() != nil {
			inst.clean(context.WithoutCancel(ctx))
			return nil, err
		}
		if !errors.Is(err, errNoSnapshot) && !errors.Is(err, errBootFaster) {
			n.cfg.Log.Warn("restore instance, booting instead", "namespace", l.Namespace, "revision", l.Revision, "error", err)
			inst = n.newInstance(l, driver, options)
			inst.phases = []sandbox.Phase{{Name: "restore-failed", Took: time.Since(began)}}
		}
	}
	if inst, err = n.boot(ctx, inst); err != nil {
		return nil, err
	}
	n.add(inst)
	return inst, nil
}

// enter counts a launch in; Close waits until it has left.
func (n *Node) enter() (leave func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	n.launches.Add(1)
	return n.launches.Done, nil
}

// options says with which driver a launch is done, and what of its snapshot
// options.
func (n *Node) options(l *Launch) (sandbox.Driver, snapshots.Options, error) {
	driver, err := n.Driver(l.Driver)
	if err != nil {
		return nil, snapshots.Options{}, &StartError{Reason: ReasonNoDriver, Err: err}
	}
	o, err := l.Snapshot.Check(driver.Name(), driver.Capabilities(), n.cfg.Snapshots != nil)
	if err != nil {
		return nil, o, &StartError{Reason: ReasonSnapshot, Err: err}
	}
	return driver, o, nil
}

// startsOf are the measured starts of a revision.
func (n *Node) startsOf(namespace, revision string) *pace.Starts {
	key := slotKey{namespace, revision}
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.starts[key]
	if s == nil {
		s = &pace.Starts{}
		n.starts[key] = s
	}
	return s
}

// add makes an instance that is ready one of the node's.
func (n *Node) add(i *Instance) {
	n.mu.Lock()
	n.instances[i.id] = i
	n.mu.Unlock()
	go i.watch()
}

func (n *Node) newInstance(l Launch, driver sandbox.Driver, o snapshots.Options) *Instance {
	now := time.Now()
	return &Instance{
		node: n, launch: l, driver: driver, options: o, kind: Booted, id: sandbox.NewID(),
		done: make(chan struct{}), hurry: make(chan struct{}), clock: now, began: now,
		starts: n.startsOf(l.Namespace, l.Revision),
	}
}

// phase notes the time since the last phase.
func (i *Instance) phase(name string) {
	now := time.Now()
	i.phases = append(i.phases, sandbox.Phase{Name: name, Took: now.Sub(i.clock)})
	i.clock = now
}

// boot starts an instance the long way. On error nothing is left.
func (n *Node) boot(ctx context.Context, i *Instance) (*Instance, error) {
	if err := i.start(ctx); err != nil {
		i.clean(context.WithoutCancel(ctx))
		return nil, err
	}
	i.took = time.Since(i.began)
	i.sample = i.starts.Note(pace.Boot, i.took)
	if i.have { // it was chosen to be booted
		return i, nil
	}
	if err := i.saveReady(ctx); !errors.Is(err, ErrEndedBySnapshot) {
		return i, nil
	}
	// The snapshot was the end of it, which is not the function's fault:
	// once more, without.
	i.clean(context.WithoutCancel(ctx))
	i.options.Policy = nil
	return n.boot(ctx, n.newInstance(i.launch, i.driver, i.options))
}

// start takes every step up to ready. What it has acquired is in the
// instance's own fields, for clean to give back.
func (i *Instance) start(ctx context.Context) error {
	if i.spec == nil {
		if err := i.acquire(ctx); err != nil {
			return err
		}
	}
	if err := i.journal(ctx); err != nil {
		return err
	}
	box, err := i.driver.Create(ctx, i.spec)
	if err != nil {
		return i.explain(fmt.Errorf("create sandbox: %w", err))
	}
	i.sandbox = box
	i.phase("create")
	if err := i.sandbox.Start(ctx); err != nil {
		return i.explain(fmt.Errorf("start: %w", err))
	}
	i.phase("start")
	return i.ready(ctx)
}

// acquire gets what a sandbox is made of: image, network, log.
func (i *Instance) acquire(ctx context.Context) error {
	n, l := i.node, &i.launch
	img, release, err := n.cfg.Images.Use(ctx, l.Image)
	if err != nil {
		return &StartError{Reason: ReasonImage, Err: err}
	}
	i.onClean(func(context.Context) error { release(); return nil })
	i.phase("image")

	lease, err := n.cfg.Networks.Acquire(ctx, network.Options{Kind: i.driver.Capabilities().Link, Egress: l.Egress})
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	i.onClean(lease.Release)
	i.phase("network")

	i.log, err = n.cfg.Logs.Create(logs.Key{Namespace: l.Namespace, Revision: l.Revision, Instance: i.id})
	if err != nil {
		return err
	}
	i.onClean(func(context.Context) error { return i.log.Close() })
	i.digest = first(img.Digest, l.Image)
	i.spec = i.specOf(img, i.driver.Capabilities(), lease.Link())
	return nil
}

// ready waits until a sandbox that runs takes requests.
func (i *Instance) ready(ctx context.Context) error {
	if err := network.WaitCarrier(ctx, i.spec.Link); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := i.awaitReady(ctx); err != nil {
		return err
	}
	i.phase("ready")
	i.readyAt = time.Now()
	return nil
}

// journal records the sandbox and makes its folder.
func (i *Instance) journal(ctx context.Context) error {
	n, spec := i.node, i.spec
	err := n.cfg.Journal.Put(ctx, kindSandbox, i.id, record{Driver: i.driver.Name(), State: spec.State()})
	if err != nil {
		return err
	}
	i.onClean(func(ctx context.Context) error {
		if err := os.RemoveAll(spec.Dir); err != nil {
			return err // stays recorded
		}
		return n.cfg.Journal.Delete(ctx, kindSandbox, i.id)
	})
	if err := os.Mkdir(spec.Dir, 0o700); err != nil {
		return fmt.Errorf("sandbox folder: %w", err)
	}
	i.onClean(func(ctx context.Context) error {
		if i.sandbox != nil && i.sandbox.Destroy(ctx) == nil {
			return nil
		}
		return i.driver.Reap(ctx, spec.State())
	})
	return nil
}
