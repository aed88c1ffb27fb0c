package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
	"github.com/skep-dev/skep/internal/snapfaas/images"
	"github.com/skep-dev/skep/internal/snapfaas/snapdir"
)

// machine is the one that a child owns.
type machine struct {
	driver sandbox.Driver
	conf   *Config
	spec   *sandbox.Spec
	box    sandbox.Sandbox
	conn   *guest.Conn
	loaded *snapdir.Snapshot // nil if booted
	record bool              // the first request is still to be recorded
	ready  Ready
}

// boot starts a machine up to where it takes requests, or has been saved and
// is not wanted any more.
func boot(ctx context.Context, d sandbox.Driver, c *Config) (_ *machine, err error) {
	m := &machine{driver: d, conf: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.stop(ctx))
		}
	}()
	if c.Dump.Dir != "" {
		if err := snapdir.CheckDump(c.Dump.Dir, c.Load.Dirs); err != nil {
			return nil, err
		}
	}
	m.spec = &sandbox.Spec{
		ID: c.State.ID, Dir: c.State.Dir, Cgroup: c.State.Cgroup, Link: c.Link,
		Rootfs: c.Rootfs, Disks: []string{c.App}, Hostname: c.Hostname,
		Process:   sandbox.Process{Args: []string{images.RuntimePath}},
		Resources: sandbox.Resources{MemoryBytes: c.MemoryMiB << 20, CPUMillis: 1000 * c.VCPUs},
		Stdout:    os.Stderr, Stderr: os.Stderr,
	}
	if len(c.Load.Dirs) > 0 {
		err = m.restore(ctx)
	} else {
		err = m.create(ctx)
	}
	if err != nil {
		return nil, err
	}
	if err := m.phase("guest connected", func() error { return m.connect(ctx) }); err != nil {
		return nil, err
	}
	if m.conn.Point() == guest.App {
		m.noteApp()
	}
	if c.Dump.Dir != "" && (c.point() == m.conn.Point() || m.conn.Point() == guest.App) {
		if err := m.save(ctx); err != nil || c.Dump.Exit {
			return m, err
		}
	}
	if m.conn.Point() == guest.App {
		return m, nil
	}
	if err := m.phase("app loaded", func() error { return m.loadApp(ctx) }); err != nil {
		return nil, err
	}
	if c.Dump.Dir != "" && c.point() == guest.App {
		return m, m.save(ctx)
	}
	return m, nil
}

// phase times one step.
func (m *machine) phase(name string, do func() error) error {
	begin := time.Now()
	err := do()
	m.ready.Phases = append(m.ready.Phases, Phase{name, time.Since(begin)})
	return err
}

func (m *machine) create(ctx context.Context) error {
	return m.phase("VM creation", func() (err error) {
		if m.box, err = m.driver.Create(ctx, m.spec); err != nil {
			return err
		}
		return m.box.Start(ctx)
	})
}

// noteApp says which flags have no effect on a machine that has an app already.
func (m *machine) noteApp() {
	if m.loaded == nil && !m.conf.NoApp {
		m.note("--appfs: the root file system has an app in it, which is the one that runs")
	}
	if m.conf.Dump.Point == guest.Language {
		m.note("--snapshot_point: the app is there already, the snapshot has it in it")
	}
}

func (m *machine) note(s string) { m.ready.Notes = append(m.ready.Notes, s) }

// connect connects to the runtime.
func (m *machine) connect(ctx context.Context) error {
	conn, err := m.dial(ctx)
	if err != nil {
		return fmt.Errorf("connect to the guest's runtime: %w", m.explain(err))
	}
	m.conn, err = guest.Open(ctx, conn)
	return m.explain(err)
}

// dial waits until the runtime listens.
func (m *machine) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // a runtime that ends, as for want of its program, never listens
		if exit, err := m.box.Wait(ctx); err == nil {
			cancel(fmt.Errorf("it ended with code %d: %s", exit.Code, exit.Reason))
		}
	}()
	if w, ok := m.box.(sandbox.PortWaiter); ok && m.loaded == nil {
		if err := w.WaitPort(ctx, guest.Port); err != nil {
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		conn, err := m.box.Dial(ctx, guest.Port)
		if err == nil {
			return conn, nil
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, errors.Join(err, context.Cause(ctx))
		case <-t.C:
		}
	}
}

// explain adds how the runtime ended, if it has, to an error.
func (m *machine) explain(err error) error {
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if exit, werr := m.box.Wait(ctx); werr == nil {
		why := fmt.Sprintf("the guest's runtime has ended with code %d %s", exit.Code, exit.Reason)
		if exit.OOMKilled {
			why = fmt.Sprintf("the guest ran out of memory: %d MB are not enough (--mem_size)", m.conf.MemoryMiB)
		}
		return fmt.Errorf("%s: %w", why, err)
	}
	return err
}

// loadApp mounts the app's disk and has it imported.
func (m *machine) loadApp(ctx context.Context) error {
	d, ok := m.box.(sandbox.Mounter)
	if !ok {
		return fmt.Errorf("the driver %s cannot mount the app's disk", m.driver.Name())
	}
	if err := d.Mount(ctx, 0, guest.AppDir); err != nil {
		return fmt.Errorf("--appfs: %w", m.explain(err))
	}
	err := m.conn.LoadApp(ctx)
	var app *guest.AppError
	switch {
	case errors.As(err, &app) && m.conf.NoApp:
		return errors.New("there is no app: name one with --appfs, or have it in the root file system (skep runtime build --app)")
	case errors.As(err, &app):
		return fmt.Errorf("--appfs: is it an app for the runtime %s? %w", m.conn.Runtime, err)
	}
	return m.explain(err)
}

// save writes a snapshot of the machine, without a connection in it.
func (m *machine) save(ctx context.Context) error {
	saver, ok := m.box.(sandbox.Saver)
	if !ok {
		return fmt.Errorf("--dump_dir: the driver %s has no snapshots", m.driver.Name())
	}
	self, err := m.describe(ctx)
	if err != nil {
		return err
	}
	meta := snapdir.Meta{ID: sandbox.NewID(), Point: m.conn.Point(), Machine: self}
	if m.loaded != nil && m.driver.Capabilities().LayeredSnapshot {
		meta.Base = m.loaded.ID
	} else if m.loaded != nil {
		m.note(fmt.Sprintf("the driver %s has no diffs: the snapshot is whole", m.driver.Name()))
	}
	conn := m.conn
	m.conn = nil
	if err := conn.Close(ctx); err != nil {
		return m.explain(err)
	}
	err = m.phase("snapshot saved", func() error {
		return snapdir.Write(m.conf.Dump.Dir, meta, func(dir string) error {
			return saver.Save(ctx, sandbox.SaveOptions{Dir: dir, Diff: meta.Base != ""})
		})
	})
	if err != nil {
		return fmt.Errorf("save a snapshot: %w", m.explain(err))
	}
	m.ready.Point = meta.Point
	if m.conf.Dump.Exit {
		return nil
	}
	return m.connect(ctx)
}

// request hands a payload to the app. The error is a *guest.AppError if the
// machine can take another. recorded says that what it touched was written.
func (m *machine) request(ctx context.Context, payload []byte) (reply []byte, recorded bool, err error) {
	if m.conn == nil {
		return nil, false, errors.New("the machine is not up any more")
	}
	reply, err = m.conn.Request(ctx, payload)
	var app *guest.AppError
	if err != nil && !errors.As(err, &app) {
		return nil, false, m.explain(err)
	}
	if m.record {
		m.record = false
		if rerr := m.recorded(ctx); rerr != nil {
			return nil, false, fmt.Errorf("--dump_ws: %w", rerr)
		}
		recorded = true
	}
	return reply, recorded, err
}

// recorded writes what the first request has touched.
func (m *machine) recorded(ctx context.Context) error {
	r, ok := m.box.(sandbox.Recorder)
	if !ok {
		return errors.New("the machine does not record")
	}
	return r.Recorded(ctx, m.loaded.WorkingSet())
}

// stop ends the machine.
func (m *machine) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if m.conn != nil {
		_ = m.conn.Abort()
	}
	if m.box == nil {
		return nil
	}
	return m.box.Destroy(ctx)
}
