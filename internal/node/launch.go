package node

import (
	"context"
	"fmt"
	"os"
	"path"
	"strconv"
	"time"

	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/node/logs"
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
}

// Launch starts an instance and returns once it is ready. The error is a
// *StartError if the cause is the function or its image. Nothing is left
// behind on error.
func (n *Node) Launch(ctx context.Context, l Launch) (*Instance, error) {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil, ErrClosed
	}
	n.launches.Add(1)
	n.mu.Unlock()
	defer n.launches.Done()
	ctx, cancel := context.WithTimeout(ctx, l.StartTimeout)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	inst := &Instance{node: n, launch: l, id: sandbox.NewID(), done: make(chan struct{}), hurry: make(chan struct{})}
	if err := inst.start(ctx); err != nil {
		inst.clean(context.WithoutCancel(ctx))
		return nil, err
	}
	n.mu.Lock()
	n.instances[inst.id] = inst
	n.mu.Unlock()
	go inst.watch()
	return inst, nil
}

// start takes every step up to ready. What it has acquired is in the
// instance's own fields, for clean to give back.
func (i *Instance) start(ctx context.Context) error {
	n, l := i.node, &i.launch
	driver, err := n.Driver(l.Driver)
	if err != nil {
		return &StartError{Reason: ReasonNoDriver, Err: err}
	}
	clock := time.Now()
	phase := func(name string) {
		now := time.Now()
		i.phases = append(i.phases, sandbox.Phase{Name: name, Took: now.Sub(clock)})
		clock = now
	}

	img, release, err := n.cfg.Images.Use(ctx, l.Image)
	if err != nil {
		return &StartError{Reason: ReasonImage, Err: err}
	}
	i.onClean(func(context.Context) error { release(); return nil })
	phase("image")

	lease, err := n.cfg.Networks.Acquire(ctx, network.Options{Kind: driver.Capabilities().Link, Egress: l.Egress})
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	i.onClean(lease.Release)
	phase("network")

	i.log, err = n.cfg.Logs.Create(logs.Key{Namespace: l.Namespace, Revision: l.Revision, Instance: i.id})
	if err != nil {
		return err
	}
	i.onClean(func(context.Context) error { return i.log.Close() })

	spec := i.spec(img, driver.Capabilities(), lease.Link())
	if err := i.journal(ctx, driver, spec); err != nil {
		return err
	}
	i.onClean(func(ctx context.Context) error {
		if i.sandbox != nil && i.sandbox.Destroy(ctx) == nil {
			return nil
		}
		return driver.Reap(ctx, spec.State())
	})
	box, err := driver.Create(ctx, spec)
	if err != nil {
		return i.explain(fmt.Errorf("create sandbox: %w", err))
	}
	i.sandbox = box
	phase("create")

	if err := i.sandbox.Start(ctx); err != nil {
		return i.explain(fmt.Errorf("start: %w", err))
	}
	phase("start")

	if err := network.WaitCarrier(ctx, spec.Link); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := i.awaitReady(ctx); err != nil {
		return err
	}
	phase("ready")
	i.readyAt = time.Now()
	return nil
}

// journal records the sandbox and makes its folder.
func (i *Instance) journal(ctx context.Context, d sandbox.Driver, spec *sandbox.Spec) error {
	n := i.node
	err := n.cfg.Journal.Put(ctx, kindSandbox, i.id, record{Driver: d.Name(), State: spec.State()})
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
	return nil
}

// spec merges the image's configuration with the service's, as Kubernetes
// does: command replaces the entrypoint and drops the image's arguments,
// args replaces only the arguments.
func (i *Instance) spec(img *image.Image, can sandbox.Capabilities, link sandbox.Link) *sandbox.Spec {
	l := &i.launch
	rootfs := img.Rootfs
	if !can.RootfsXattrs {
		rootfs = img.RootfsNoXattrs
	}
	entrypoint, args := img.Config.Entrypoint, img.Config.Cmd
	if len(l.Command) > 0 {
		entrypoint, args = l.Command, nil
	}
	if len(l.Args) > 0 {
		args = l.Args
	}
	env := append([]string(nil), img.Config.Env...)
	env = append(env,
		"PORT="+strconv.Itoa(l.Port),
		"K_SERVICE="+l.Service, "K_CONFIGURATION="+l.Service, "K_REVISION="+l.Revision)
	env = append(env, l.Env...)
	return &sandbox.Spec{
		ID: i.id, Dir: i.node.sandboxDir(i.id), Rootfs: rootfs,
		Hostname: l.Revision,
		Process: sandbox.Process{
			Args: append(append([]string(nil), entrypoint...), args...),
			Env:  dedupEnv(env),
			Cwd:  first(l.WorkingDir, img.Config.WorkingDir, "/"),
			User: first(l.User, img.Config.User),
		},
		Resources: l.Resources,
		Link:      link,
		Cgroup:    path.Join(i.node.CgroupParent(), i.id),
		Stdout:    i.log.Stdout, Stderr: i.log.Stderr,
	}
}

// dedupEnv keeps the last value of each variable, at its first place.
func dedupEnv(env []string) []string {
	at := map[string]int{}
	var out []string
	for _, kv := range env {
		key := kv
		for k := range kv {
			if kv[k] == '=' {
				key = kv[:k]
				break
			}
		}
		if n, ok := at[key]; ok {
			out[n] = kv
			continue
		}
		at[key] = len(out)
		out = append(out, kv)
	}
	return out
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
