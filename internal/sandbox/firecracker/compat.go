package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	kernel, _, err := d.files.Prepare(ctx)
	if err != nil {
		return c, err
	}
	// Its name holds its digest.
	c.Kernel = filepath.Base(kernel)
	sum := sha256.Sum256(d.files.Agent)
	c.Agent = hex.EncodeToString(sum[:])
	c.MemoryBytes = b.Resources.MemoryBytes
	c.VCPUs = int(microvm.VCPUs(b.Resources.CPUMillis))
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return c, err
	}
	c.CPUModel, c.CPUFeatures = parseCPU(string(cpuinfo))
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

// parseCPU reads the first processor's model and flags from /proc/cpuinfo.
func parseCPU(cpuinfo string) (model string, features []string) {
	values := map[string]string{}
	for line := range strings.Lines(cpuinfo) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			if len(values) > 0 {
				break // the next processor
			}
			continue
		}
		values[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	features = strings.Fields(values["flags"])
	slices.Sort(features)
	var id []string
	for _, key := range []string{"vendor_id", "cpu family", "model", "stepping"} {
		id = append(id, values[key])
	}
	return strings.Join(id, " "), slices.Compact(features)
}

// firecrackerVersion asks the program once. Another than the pinned release is
// used, and said.
func (d *Driver) firecrackerVersion(ctx context.Context) (string, error) {
	if err := microvm.Lock(ctx, d.versions); err != nil {
		return "", err
	}
	defer microvm.Unlock(d.versions)
	if d.version != "" {
		return d.version, nil
	}
	out, err := exec.CommandContext(ctx, d.program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", d.program, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	version, ok := strings.CutPrefix(strings.TrimSpace(first), "Firecracker ")
	if !ok || version == "" || len(version) > 100 {
		return "", fmt.Errorf("%s --version printed %.200q", d.program, out)
	}
	if want := Pinned().Version; version != want {
		d.log.Warn("firecracker: not the release that this driver is tested with", "version", version, "tested", want)
	}
	d.version = version
	return version, nil
}
