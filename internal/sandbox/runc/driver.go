// Package runc runs functions in plain containers, with the distribution's
// runc. It isolates the least of all drivers, costs the least, and needs
// nothing of the machine but Linux.
//
// Every sandbox is a child of its own `runc run`, in the foreground: about
// 2 MB of private memory buys that the function's exit code is never lost,
// that nothing is left unwaited for, and that this process does not become
// the reaper of strangers. runc's state is in Spec.Dir too, so that a sandbox
// can be removed without asking runc.
//
// Writable space is a tmpfs: what a function writes counts as its memory.
package runc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	gorunc "github.com/containerd/go-runc"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// Name is the driver's name.
const Name = "runc"

// patience bounds cleaning up, where no context of the caller can.
const patience = 30 * time.Second

// Config of a driver.
type Config struct {
	// Command is runc's name or path. Default: "runc", looked up in PATH.
	Command string
}

// Driver makes containers. See [sandbox.Driver].
type Driver struct {
	command string
}

var _ sandbox.Driver = (*Driver)(nil)

// New makes a driver. It does not look at the machine; Probe does.
func New(cfg Config) *Driver {
	if cfg.Command == "" {
		cfg.Command = "runc"
	}
	return &Driver{command: cfg.Command}
}

// Name implements [sandbox.Driver].
func (d *Driver) Name() string { return Name }

// Capabilities implements [sandbox.Driver].
func (d *Driver) Capabilities() sandbox.Capabilities {
	return sandbox.Capabilities{Link: sandbox.LinkVeth, RootfsXattrs: true}
}

// files of a sandbox, in its Spec.Dir.
const (
	lowerDir   = "lower"       // the EROFS image
	writeDir   = "rw"          // tmpfs with the overlay's upper and work directories
	rootDir    = "rootfs"      // the overlay
	stateDir   = "runc"        // runc --root
	configFile = "config.json" // makes Spec.Dir an OCI bundle
	logFile    = "runc.log"
	pidFile    = "pid"
	etcDir     = "etc"
	execPrefix = "exec-"
)

// Create implements [sandbox.Driver].
func (d *Driver) Create(ctx context.Context, spec *sandbox.Spec) (_ sandbox.Sandbox, err error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if strings.ContainsAny(spec.Dir, `,:\`) {
		return nil, fmt.Errorf(`sandbox spec: dir: %q contains one of ",:\", which overlayfs cannot mount`, spec.Dir)
	}
	if _, err := exec.LookPath(d.command); err != nil {
		return nil, missing(d.command, err)
	}
	s := &container{driver: d, spec: *spec, done: make(chan struct{}), busy: make(chan struct{}, 1)}
	s.spec.Resources = ocispec.Defaults(spec.Resources)
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		err = errors.Join(fmt.Errorf("create sandbox %s: %w", spec.ID, err), d.remove(ctx, spec.State()))
	}()
	for _, step := range []struct {
		name string
		fn   func() error
	}{
		{"config", s.writeBundle},
		{"rootfs", func() error { return mountRoot(ctx, &s.spec) }},
		{"cgroup", s.makeCgroup},
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		start := time.Now()
		if err := step.fn(); err != nil {
			return nil, err
		}
		s.phases = append(s.phases, sandbox.Phase{Name: step.name, Took: time.Since(start)})
	}
	return s, nil
}

// writeBundle writes runc's configuration.
func (s *container) writeBundle() error {
	if _, err := os.Stat(s.spec.Link.NetNS); err != nil {
		return fmt.Errorf("link.netns: %w", err)
	}
	image, closer, err := ocispec.OpenImage(s.spec.Rootfs)
	if err != nil {
		return err
	}
	defer closer.Close()
	spec, err := ocispec.New(&s.spec, ocispec.Options{Root: rootDir, Image: image, HostKernel: true})
	if err != nil {
		return err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode %s: %w", configFile, err)
	}
	if err := os.WriteFile(s.path(configFile), text, 0o600); err != nil {
		return fmt.Errorf("write the OCI bundle: %w", err)
	}
	return ocispec.WriteFiles(&s.spec)
}

func (s *container) makeCgroup() (err error) {
	r := s.spec.Resources
	s.group, err = cgroup.Create(s.spec.Cgroup, cgroup.Limits{MemoryBytes: r.MemoryBytes, CPUMillis: r.CPUMillis, PIDs: r.PIDs})
	return err
}

// client is runc for one sandbox.
func (d *Driver) client(dir, log string) *gorunc.Runc {
	return &gorunc.Runc{
		Command:   d.command,
		Root:      filepath.Join(dir, stateDir),
		Log:       filepath.Join(dir, log),
		LogFormat: gorunc.JSON,
		Setpgid:   true, // a Ctrl-C in our terminal is not for the function
	}
}

func missing(command string, err error) error {
	return fmt.Errorf("%s cannot be run: %w; install it: apt-get install runc", command, err)
}
