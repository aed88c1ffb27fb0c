package qemu

import (
	"context"
	"fmt"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// Compatibility says what a snapshot depends on. An emulated processor is the
// same on every host; a real one must have the same features.
func (d *Driver) Compatibility(ctx context.Context, spec *sandbox.Spec) (sandbox.Compatibility, error) {
	c, err := d.compatibility(ctx, spec)
	if err != nil {
		return c, fmt.Errorf("qemu: %w", err)
	}
	return c, nil
}

func (d *Driver) compatibility(ctx context.Context, spec *sandbox.Spec) (c sandbox.Compatibility, err error) {
	accel, err := d.resolveAccel(ctx)
	if err != nil {
		return c, err
	}
	if c.Kernel, c.Agent, err = d.files.Digests(ctx); err != nil {
		return c, err
	}
	if c.Version, err = d.program.Version(ctx); err != nil {
		return c, err
	}
	b := d.newBox(spec)
	c.MemoryBytes, c.VCPUs = b.Resources.MemoryBytes, int(b.machine(accel).cpus)
	c.CPUModel, c.CPUFeatures = "tcg max", []string{"tcg"}
	if accel == AccelKVM {
		if c.CPUModel, c.CPUFeatures, err = microvm.HostCPU(); err != nil {
			return c, err
		}
		c.CPUModel = "kvm " + c.CPUModel
	}
	return c, nil
}
