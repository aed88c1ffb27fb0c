package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

const (
	probeMemoryMiB = 128
	// kvmTimeout is how long a machine with KVM may take to boot: many times
	// what it needs. One that hangs has no KVM worth the name.
	kvmTimeout = 15 * time.Second
	// askedTimeout is the same where nothing but KVM will do: to give up early
	// helps nobody there.
	askedTimeout = 2 * time.Minute
)

// Probe boots a machine up to its agent, and so proves QEMU, kernel, modules,
// agent and processor.
func (d *Driver) Probe(ctx context.Context, scratch sandbox.State) error {
	accel, err := d.resolveAccel(ctx)
	if err != nil {
		return err
	}
	return d.probe(ctx, accel, scratch)
}

func (d *Driver) probe(ctx context.Context, accel Accel, scratch sandbox.State) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("qemu: probe with %s: %w", accel, err)
		}
	}()
	m := machine{
		id: scratch.ID, accel: accel, memoryMiB: probeMemoryMiB, cpus: 1,
		guestParams: []string{microvm.ProbeParam},
	}
	if accel == AccelTCG {
		m.tscKHz = tscKHz()
	}
	if m.kernel, m.initrd, err = d.files.Prepare(ctx); err != nil {
		return err
	}
	g, err := cgroup.Create(scratch.Cgroup, m.limits())
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := microvm.CleanUp(ctx)
		defer cancel()
		err = errors.Join(err, g.Kill(clean), g.Delete(clean))
	}()
	memory, err := newMemory(probeMemoryMiB * mib)
	if err != nil {
		return err
	}
	defer memory.Close() //nolint:errcheck // in memory
	v, err := d.start(ctx, m, &machineFiles{}, memory, g)
	if err != nil {
		return err
	}
	defer func() {
		v.End()
		_ = v.qmp.Close()
	}()
	return v.AwaitReady(ctx)
}

// Accel is how processors are provided. The first call may boot a machine to
// find that out.
func (d *Driver) Accel(ctx context.Context) (Accel, error) { return d.resolveAccel(ctx) }

// resolveAccel decides, once, how processors are provided. That /dev/kvm can
// be opened, and even makes machines, proves nothing: one must boot.
func (d *Driver) resolveAccel(ctx context.Context) (Accel, error) {
	if err := microvm.Lock(ctx, d.probing); err != nil {
		return "", err
	}
	defer microvm.Unlock(d.probing)
	if d.accel == AccelTCG || d.proved.Load() {
		return d.accel, nil
	}
	err := openKVM(d.accel)
	if err == nil {
		// The files come first, they take their own time.
		if _, _, err := d.files.Prepare(ctx); err != nil {
			return "", fmt.Errorf("qemu: %w", err)
		}
		timeout := kvmTimeout
		if d.accel == AccelKVM {
			timeout = askedTimeout
		}
		limited, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		id := sandbox.NewID()
		err = d.probe(limited, AccelKVM, sandbox.State{ID: id, Cgroup: "skep-probe-" + id})
	}
	switch {
	case err == nil:
		d.accel = AccelKVM
		d.proved.Store(true)
	case ctx.Err() != nil:
		return "", ctx.Err()
	case d.accel == AccelKVM:
		return "", fmt.Errorf("qemu: KVM does not work here: %w", err)
	default:
		d.log.Info("qemu: no KVM, processors are emulated", "reason", err)
		d.accel = AccelTCG
	}
	return d.accel, nil
}

// openKVM looks for what KVM needs, to spare most machines without it a
// machine that hangs. Asked for KVM outright, it leaves the judgement on the
// processor to the boot.
func openKVM(a Accel) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_ = f.Close()
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if a == AccelAuto && !hasVirtualization(string(b)) {
		return errors.New("the processor has neither vmx nor svm")
	}
	return nil
}

// hasVirtualization looks for the extensions' flags in /proc/cpuinfo.
func hasVirtualization(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "flags" {
			flags := strings.Fields(value)
			return slices.Contains(flags, "vmx") || slices.Contains(flags, "svm")
		}
	}
	return false
}
