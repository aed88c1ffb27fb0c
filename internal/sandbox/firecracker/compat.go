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

// Compatibility says what a snapshot depends on: the processor, too, unless a
// CPU template hides it.
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
		vendor, _, _ := strings.Cut(c.CPUModel, " ")
		c.CPUModel = vendor + " template " + d.conf.CPUTemplate
	case d.cpuConfig != nil:
		sum := sha256.Sum256(d.cpuConfig)
		c.CPUModel = "template " + hex.EncodeToString(sum[:])
	}
	if d.conf.HugePages {
		c.CPUModel += " with huge pages"
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
