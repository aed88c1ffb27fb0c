// Package daemon puts the parts of Skep together into one process: API,
// control plane, gateway and node on one server.
package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"
)

// Daemon is a running Skep.
type Daemon struct {
	cfg       Config
	endpoints Endpoints
	stops     []stop // in the order started
	failed    chan error
}

// stop is a step of the shutdown.
type stop struct {
	name string
	run  func(context.Context) error
}

// Start starts everything and returns when requests are served. On error all
// that was started is stopped again.
func Start(ctx context.Context, cfg Config) (d *Daemon, err error) {
	d = &Daemon{cfg: cfg, failed: make(chan error, 8)}
	defer func() {
		if err != nil {
			stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.DrainTimeout)
			defer cancel()
			err = errors.Join(err, d.Stop(stopping))
		}
	}()
	if os.Geteuid() != 0 {
		return d, errors.New("skep up needs root: it makes network namespaces, cgroups and mounts (try sudo)")
	}
	if err := cfg.mkdirs(); err != nil {
		return d, err
	}
	release, err := lock(cfg.Data)
	if err != nil {
		return d, err
	}
	d.onStop("lock", func(context.Context) error { release(); return nil })
	return d, d.start(ctx)
}

func (d *Daemon) onStop(name string, f func(context.Context) error) {
	d.stops = append(d.stops, stop{name, f})
}

// Endpoints says where the daemon listens.
func (d *Daemon) Endpoints() Endpoints { return d.endpoints }

// Failed receives an error if a part of the daemon broke down.
func (d *Daemon) Failed() <-chan error { return d.failed }

// Stop drains and stops everything, last started first. It goes on past
// errors and past the end of ctx, after which nothing is waited for.
func (d *Daemon) Stop(ctx context.Context) error {
	var errs []error
	for i := len(d.stops) - 1; i >= 0; i-- {
		began := time.Now()
		if err := d.stops[i].run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", d.stops[i].name, err))
		}
		d.cfg.Log.Debug("stopped", "part", d.stops[i].name, "took", time.Since(began))
	}
	d.stops = nil
	return errors.Join(errs...)
}

func waitFor(ctx context.Context, wait func()) error {
	done := make(chan struct{})
	go func() { wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newNodeID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}
