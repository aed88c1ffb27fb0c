package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

const (
	mib = 1 << 20
	// overhead is for Firecracker itself, in bytes.
	overhead = 48 * mib
	// threads bounds Firecracker's: one for each processor, the API, devices.
	threads = 64
	// snapshotSlack is what a snapshot's largest file can be beyond the memory.
	snapshotSlack = 16 * mib
)

// Driver makes micro-VMs. It implements sandbox.Driver.
type Driver struct {
	conf      Config
	log       *slog.Logger
	program   *microvm.Program
	jailer    string
	cpuConfig fcapi.CPUConfig // nil: none
	template  *cpuTemplate    // the same
	files     *microvm.BootFiles

	// booting has a place for each machine that may boot at the same time.
	booting chan struct{}

	strange sync.Once // said that the program is not of the pinned release
}

var _ sandbox.Driver = (*Driver)(nil)

// Name is "firecracker".
func (d *Driver) Name() string { return Name }

// Capabilities are what Firecracker has wherever it works. An image of several
// layers is written to one file before it is mapped (RestoreMap, RestoreHint):
// it is then in the page cache as a whole, and there is nothing to hint.
func (d *Driver) Capabilities() sandbox.Capabilities {
	modes := restoreModes
	if d.conf.HugePages {
		modes = []sandbox.RestoreMode{sandbox.RestorePager}
	}
	return sandbox.Capabilities{
		Link:                   sandbox.LinkTAP,
		HardwareVirtualization: true,
		OwnKernel:              true,
		Snapshot:               true,
		RestoreModes:           slices.Clone(modes),
		LayeredSnapshot:        true,
		OnDemandMemory:         true,
		BlockDevices:           true,
		Disks:                  true,
		RootfsXattrs:           true,
	}
}

// Create boots a machine up to the point where its agent waits for the
// function's process.
func (d *Driver) Create(ctx context.Context, spec *sandbox.Spec) (sandbox.Sandbox, error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	b := d.newBox(spec)
	if err := d.boot(ctx, b); err != nil {
		return nil, b.Discard(ctx, err, b.Destroy)
	}
	return b, nil
}

func check(spec *sandbox.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	_, f, err := ocispec.OpenImage(spec.Rootfs)
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	return f.Close()
}

// Reap ends the machine with this state, if there is one, and removes its jail.
// Its process is in its cgroup, but for its first moments: so it is also looked
// for by its arguments.
func (d *Driver) Reap(ctx context.Context, s sandbox.State) error {
	if err := d.reap(ctx, s); err != nil {
		return fmt.Errorf("firecracker: reap sandbox %s: %w", s.ID, err)
	}
	return nil
}

func (d *Driver) reap(ctx context.Context, s sandbox.State) error {
	g, err := cgroup.Load(s.Cgroup)
	if err != nil {
		return err
	}
	err = microvm.KillMatching(ctx, func(args []string) bool {
		for i, a := range args {
			if a == "--id="+s.ID || (a == s.ID && i > 0 && args[i-1] == "--id") {
				return true
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	// Also those that another release of Firecracker, with another name, made.
	jails, err := filepath.Glob(filepath.Join(s.Dir, "*", s.ID, "root"))
	if err != nil {
		return err
	}
	errs := []error{g.Kill(ctx), g.Delete(ctx)}
	for _, j := range jails {
		errs = append(errs, os.RemoveAll(filepath.Dir(filepath.Dir(j))))
	}
	return errors.Join(errs...)
}
