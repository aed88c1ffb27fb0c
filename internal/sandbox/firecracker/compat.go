package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// Compatibility says what a snapshot depends on: the processor, too, but for
// what a CPU template hides.
func (d *Driver) Compatibility(ctx context.Context, spec *sandbox.Spec) (sandbox.Compatibility, error) {
	c, err := d.compatibility(ctx, d.newBox(spec))
	if err != nil {
		return c, fmt.Errorf("firecracker: %w", err)
	}
	return c, nil
}

func (d *Driver) compatibility(ctx context.Context, b *box) (c sandbox.Compatibility, err error) {
	if c.Version, err = d.firecrackerVersion(ctx); err != nil {
		return c, err
	}
	if c.Kernel, c.Agent, err = d.files.Digests(ctx); err != nil {
		return c, err
	}
	c.MemoryBytes = b.Resources.MemoryBytes
	c.VCPUs = int(microvm.VCPUs(b.Resources.CPUMillis))
	if c.CPUModel, c.CPUFeatures, err = microvm.HostCPU(); err != nil {
		return c, err
	}
	switch {
	case d.conf.CPUTemplate != "":
		// It makes those processors alike that Firecracker has it for, and hides
		// what they do not have in common.
		vendor, _, _ := strings.Cut(c.CPUModel, " ")
		c.CPUModel, c.CPUFeatures = vendor+" template "+d.conf.CPUTemplate, nil
	case d.cpuConfig != nil:
		sum := sha256.Sum256(d.cpuConfig)
		c.CPUModel = "template " + hex.EncodeToString(sum[:])
		if c.CPUFeatures, err = d.template.without(c.CPUFeatures); err != nil {
			return c, err
		}
	}
	// Devices that a snapshot has, or has not, for good.
	for _, x := range []struct {
		has  bool
		name string
	}{{d.conf.HugePages, "huge pages"}, {d.conf.Balloon, "balloon"}, {d.conf.MMDS != nil, "metadata"}} {
		if x.has {
			c.CPUModel += " with " + x.name
		}
	}
	return c, nil
}

// firecrackerVersion is the program's. Another than the pinned release is used,
// and said.
func (d *Driver) firecrackerVersion(ctx context.Context) (string, error) {
	first, err := d.program.Version(ctx)
	if err != nil {
		return "", err
	}
	version, ok := strings.CutPrefix(first, "Firecracker ")
	if !ok || version == "" {
		return "", fmt.Errorf("%s --version printed %q", d.program.Path, first)
	}
	if want := Pinned().Version; version != want {
		d.strange.Do(func() {
			d.log.Warn("firecracker: not the release that this driver is tested with", "version", version, "tested", want)
		})
	}
	return version, nil
}
