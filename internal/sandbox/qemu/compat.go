package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Compatibility says what a snapshot depends on. An emulated processor is the
// same on every host; a real one must have the same features.
func (d *Driver) Compatibility(ctx context.Context, spec *sandbox.Spec) (sandbox.Compatibility, error) {
	accel, err := d.resolveAccel(ctx)
	if err != nil {
		return sandbox.Compatibility{}, err
	}
	a, err := d.prepare(ctx)
	if err != nil {
		return sandbox.Compatibility{}, err
	}
	version, err := d.qemuVersion(ctx)
	if err != nil {
		return sandbox.Compatibility{}, err
	}
	sum := sha256.Sum256(d.agent)
	b := newBox(spec)
	m := b.machine(accel)
	c := sandbox.Compatibility{
		Version: version, Kernel: a.kernelDigest, Agent: hex.EncodeToString(sum[:]),
		CPUModel: "tcg max", CPUFeatures: []string{"tcg"}, MemoryBytes: b.resources.MemoryBytes, VCPUs: int(m.cpus),
	}
	if accel == AccelKVM {
		info, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			return c, fmt.Errorf("qemu: %w", err)
		}
		c.CPUModel, c.CPUFeatures = parseCPU(string(info))
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
	return "kvm " + strings.Join(id, " "), slices.Compact(features)
}

// qemuVersion asks the program once.
func (d *Driver) qemuVersion(ctx context.Context) (string, error) {
	if err := lock(ctx, d.asking); err != nil {
		return "", err
	}
	defer unlock(d.asking)
	if d.version != "" {
		return d.version, nil
	}
	out, err := exec.CommandContext(ctx, d.qemu, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("qemu: %s --version: %w", d.qemu, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	if first = strings.TrimSpace(first); first == "" || len(first) > 200 {
		return "", fmt.Errorf("qemu: %s --version printed %.200q", d.qemu, out)
	}
	d.version = first
	return first, nil
}
