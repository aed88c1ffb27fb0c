package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/gvisor"
	"github.com/skep-dev/skep/internal/sandbox/gvisor/runscbin"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
)

// cleanTimeout bounds what is done after a context has ended.
const cleanTimeout = 30 * time.Second

// world is what all sandboxes of a run share.
type world struct {
	dir        string // short: sockets are below it
	buildCache string
	parent     string // cgroup of all sandboxes
	net        *network.Manager
	images     *image.Store
}

// newWorld makes a world. The caller closes it.
func newWorld(ctx context.Context, cache string, pools map[sandbox.LinkKind]int) (_ *world, err error) {
	var id [4]byte
	_, _ = rand.Read(id[:])
	node := hex.EncodeToString(id[:])
	w := &world{parent: "skep-" + node, buildCache: filepath.Join(cache, "skep-test", "build")}
	// Not in the system's folder for temporary files if that is memory: then
	// nothing could be cold.
	if w.dir, err = os.MkdirTemp("/var/tmp", "skep-bs-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close(ctx))
		}
	}()
	if err := os.Mkdir(filepath.Join(w.dir, "boxes"), 0o700); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(w.buildCache, 0o700); err != nil {
		return nil, err
	}
	if w.images, err = image.Open(image.Config{Dir: filepath.Join(cache, "skep-bench", "images")}); err != nil {
		return nil, err
	}
	w.net, err = network.New(ctx, network.Config{Dir: filepath.Join(w.dir, "net"), NodeID: node, Pools: pools})
	return w, err
}

func (w *world) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	var errs []error
	if w.net != nil {
		errs = append(errs, w.net.Close(ctx))
	}
	if w.images != nil {
		errs = append(errs, w.images.Close())
	}
	g, err := cgroup.Load(w.parent)
	if err == nil {
		err = g.DeleteIfEmpty()
	}
	return errors.Join(append(errs, err, os.RemoveAll(w.dir))...)
}

// newDriver makes the driver of a name.
func (w *world) newDriver(name, runsc string) (sandbox.Driver, error) {
	switch name {
	case gvisor.Name:
		if runsc == "" {
			var err error
			if runsc, err = runscbin.Extract(filepath.Join(w.dir, "runsc")); err != nil {
				return nil, err
			}
		}
		return gvisor.New(gvisor.Config{Runsc: runsc}), nil
	case qemu.Name:
		return qemu.New(qemu.Config{CacheDir: filepath.Join(w.dir, "qemu")})
	}
	return nil, fmt.Errorf("no driver %q: there are %s and %s", name, gvisor.Name, qemu.Name)
}

// poll calls fn until it succeeds or ctx ends; then it returns fn's error.
func poll(ctx context.Context, fn func() error) error {
	wait := time.Millisecond
	for {
		err := fn()
		if err == nil {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
		wait = min(wait*5/4, 20*time.Millisecond)
	}
}
