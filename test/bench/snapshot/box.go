package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

const (
	// port is where all functions listen.
	port = 8080
	// startTimeout bounds a start until the first response.
	startTimeout = 3 * time.Minute
	// maxBody bounds a response.
	maxBody = 1 << 20
)

// box is one sandbox and all that it was given.
type box struct {
	w      *world
	driver sandbox.Driver
	spec   *sandbox.Spec
	lease  *network.Lease
	out    *os.File
	sb     sandbox.Sandbox
	t      timing
	// path is what the request asks for.
	path string
	// unweighed leaves the memory out, whose measuring takes processor time.
	unweighed bool
}

// timing is how long the steps from nothing to the first response took.
type timing struct {
	Prepare time.Duration // Create or Prepare: can be done ahead of a request
	Start   time.Duration // Start
	Ready   time.Duration // until the port is open; only after a boot
	Dial    time.Duration // until connected
	Byte    time.Duration // until the response's first byte
	Phases  []sandbox.Phase
	Memory  memory // after the first response
}

// request is what a request to a prepared sandbox waits for.
func (t *timing) request() time.Duration { return t.Start + t.Ready + t.Dial + t.Byte }

// total is what a request waits for when nothing was prepared.
func (t *timing) total() time.Duration { return t.Prepare + t.request() }

// newBox gets ready all that a sandbox needs, but not the sandbox.
func (w *world) newBox(ctx context.Context, d sandbox.Driver, fn *function) (_ *box, err error) {
	b := &box{w: w, driver: d, path: "/"}
	id := sandbox.NewID()
	b.spec = &sandbox.Spec{
		ID: id, Dir: filepath.Join(w.dir, "boxes", id), Hostname: "bench", Process: fn.process, Cgroup: w.parent + "/" + id,
		Resources: sandbox.Resources{MemoryBytes: fn.memory, DiskBytes: 32 << 20},
		Rootfs:    fn.rootfs,
	}
	if !d.Capabilities().RootfsXattrs {
		b.spec.Rootfs = fn.rootfsNoXattrs
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.destroy(ctx))
		}
	}()
	if err := os.Mkdir(b.spec.Dir, 0o700); err != nil {
		return nil, err
	}
	if b.out, err = os.Create(b.spec.Dir + ".log"); err != nil {
		return nil, err
	}
	b.spec.Stdout, b.spec.Stderr = b.out, b.out
	if b.lease, err = w.net.Acquire(ctx, network.Options{Kind: d.Capabilities().Link}); err != nil {
		return nil, err
	}
	b.spec.Link = b.lease.Link()
	return b, nil
}

// boot starts the function from nothing, up to the first response.
func (b *box) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	began := time.Now()
	var err error
	if b.sb, err = b.driver.Create(ctx, b.spec); err != nil {
		return err
	}
	b.t.Prepare = time.Since(began)
	return b.start(ctx, true)
}

// prepare takes a restore to where it waits for a request.
func (b *box) prepare(ctx context.Context, r sandbox.Restore) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s, ok := b.driver.(sandbox.Snapshotter)
	if !ok {
		return fmt.Errorf("%s: %w: snapshots", b.driver.Name(), sandbox.ErrUnsupported)
	}
	began := time.Now()
	var err error
	b.sb, err = s.Prepare(ctx, b.spec, r)
	b.t.Prepare = time.Since(began)
	return err
}

// restore brings the function back, up to the first response.
func (b *box) restore(ctx context.Context, r sandbox.Restore) error {
	if err := b.prepare(ctx, r); err != nil {
		return err
	}
	return b.resume(ctx)
}

// resume starts a prepared sandbox, up to the first response.
func (b *box) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return b.start(ctx, false)
}

func (b *box) start(ctx context.Context, boot bool) error {
	clock := time.Now()
	lap := func(d *time.Duration) {
		now := time.Now()
		*d = now.Sub(clock)
		clock = now
	}
	if err := b.sb.Start(ctx); err != nil {
		return err
	}
	if err := network.WaitCarrier(ctx, b.spec.Link); err != nil {
		return err
	}
	lap(&b.t.Start)
	if boot {
		if err := b.awaitPort(ctx); err != nil {
			return err
		}
		lap(&b.t.Ready)
	}
	dialled, err := b.get(ctx, func() { lap(&b.t.Byte) })
	if err != nil {
		return err
	}
	b.t.Dial = dialled
	b.t.Byte -= dialled
	b.t.Phases = b.sb.Phases()
	if !b.unweighed {
		b.t.Memory, err = b.memory(ctx)
	}
	return err
}

// awaitPort waits, as a node does, until the function listens.
func (b *box) awaitPort(ctx context.Context) error {
	if w, ok := b.sb.(sandbox.PortWaiter); ok {
		if err := w.WaitPort(ctx, port); err != nil {
			return err
		}
	}
	return poll(ctx, func() error {
		c, err := b.sb.Dial(ctx, port)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

// get sends one request on a connection of its own, and says how long it took
// to connect.
func (b *box) get(ctx context.Context, firstByte func()) (dialled time.Duration, err error) {
	began := time.Now()
	c, err := b.sb.Dial(ctx, port)
	if err != nil {
		return 0, err
	}
	dialled = time.Since(began)
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n", b.path); err != nil {
		return 0, err
	}
	r := bufio.NewReader(io.LimitReader(c, maxBody))
	if _, err := r.Peek(1); err != nil {
		return 0, fmt.Errorf("no response: %w", err)
	}
	firstByte()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the function answers %s: %.200s", res.Status, body)
	}
	return dialled, nil
}

// save makes a snapshot in a new folder.
func (b *box) save(ctx context.Context, dir string, diff bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s, ok := b.sb.(sandbox.Saver)
	if !ok {
		return 0, fmt.Errorf("%s: %w: save", b.driver.Name(), sandbox.ErrUnsupported)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	began := time.Now()
	err := s.Save(ctx, sandbox.SaveOptions{Dir: dir, Diff: diff})
	return time.Since(began), err
}

// destroy frees everything. A box that failed leaves its output in the error.
func (b *box) destroy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	var errs []error
	if b.sb != nil {
		errs = append(errs, b.sb.Destroy(ctx))
	}
	if b.lease != nil {
		errs = append(errs, b.lease.Release(ctx))
	}
	if b.out != nil {
		errs = append(errs, b.out.Close(), os.Remove(b.out.Name()))
	}
	return errors.Join(append(errs, os.RemoveAll(b.spec.Dir))...)
}

// tail is the end of what the function has printed.
func (b *box) tail() string {
	const most = 2 << 10
	text, _ := os.ReadFile(b.out.Name())
	return string(text[max(0, len(text)-most):])
}

// phasesOf joins the median of each phase, in the order of the first timing.
func phasesOf(ts []timing) []sandbox.Phase {
	var order []string
	took := map[string][]time.Duration{}
	for _, t := range ts {
		for _, p := range t.Phases {
			if !slices.Contains(order, p.Name) {
				order = append(order, p.Name)
			}
			took[p.Name] = append(took[p.Name], p.Took)
		}
	}
	var out []sandbox.Phase
	for _, name := range order {
		out = append(out, sandbox.Phase{Name: name, Took: median(took[name])})
	}
	return out
}
