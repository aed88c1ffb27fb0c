package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

const (
	// probeMemoryMiB is a probe's.
	probeMemoryMiB = 128
	// probeTimeout is how long a machine may take to boot: many times what it
	// needs. One that hangs has no KVM worth the name.
	probeTimeout = 30 * time.Second
)

// Probe boots a machine up to its agent, and so proves KVM, Firecracker,
// jailer, kernel, modules and agent.
func (d *Driver) Probe(ctx context.Context, scratch sandbox.State) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("firecracker: probe: %w", err)
		}
	}()
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		return fmt.Errorf("no KVM: %w", err)
	} else if err := f.Close(); err != nil {
		return err
	}
	kernel, initrd, err := d.files.Prepare(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	g, err := cgroup.Create(scratch.Cgroup, cgroup.Limits{MemoryBytes: probeMemoryMiB*mib + overhead, PIDs: threads})
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := microvm.CleanUp(ctx)
		defer cancel()
		err = errors.Join(err, g.Kill(clean), g.Delete(clean))
	}()
	j, err := newJail(scratch.Dir, d.program.Path, scratch.ID, microvm.UID(scratch.ID))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.remove()) }()
	v, err := d.start(ctx, j, launch{
		id: scratch.ID, fileBytes: snapshotSlack, binds: []bind{{kernel, kernelPath}, {initrd, initrdPath}}, group: g,
	})
	if err != nil {
		return err
	}
	defer v.end()
	err = d.configureBase(ctx, v, probeMemoryMiB, 1, []string{microvm.ProbeParam})
	if err == nil {
		err = v.api.Act(ctx, fcapi.InstanceStart)
	}
	if err != nil {
		return fmt.Errorf("%w; %w", err, v.Explain())
	}
	return v.AwaitReady(ctx)
}
