package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/gvisor"
	"github.com/skep-dev/skep/internal/sandbox/gvisor/runscbin"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/sandbox/runc"
)

const probeTimeout = 30 * time.Second

// newDrivers makes all drivers that this build knows, whether or not they
// work here: removing what an earlier run left needs them. For those that
// cannot even be made, missing says why.
func newDrivers(cfg Config) (drivers []sandbox.Driver, missing map[string]error) {
	missing = map[string]error{}
	runscPath, err := runscbin.Extract(filepath.Join(cfg.Data, "cache", "runsc"))
	if err == nil {
		drivers = append(drivers, gvisor.New(gvisor.Config{Runsc: runscPath}))
	} else {
		missing["gvisor"] = err
	}
	q, err := qemu.New(qemu.Config{CacheDir: filepath.Join(cfg.Data, "cache", "qemu"), Kernel: cfg.Kernel, Accel: qemu.Accel(cfg.Accel), Log: cfg.Log})
	if err == nil {
		drivers = append(drivers, q)
	} else {
		missing["qemu"] = err
	}
	fc, err := cfg.firecrackerConfig()
	if err == nil {
		var f *firecracker.Driver
		if f, err = firecracker.New(fc); err == nil {
			drivers = append(drivers, f)
		}
	}
	if err != nil {
		missing["firecracker"] = err
	}
	return append(drivers, runc.New(runc.Config{})), missing
}

// chooseDriver returns the default driver, which a real start has proved to
// work. For auto the order is: micro-VMs with KVM (by Firecracker if it is
// there), gVisor, micro-VMs by emulation, plain containers.
func chooseDriver(ctx context.Context, cfg Config, drivers []sandbox.Driver, missing map[string]error, probe func(context.Context, sandbox.Driver) error) (string, error) {
	byName := map[string]sandbox.Driver{}
	for _, d := range drivers {
		byName[d.Name()] = d
	}
	try := func(name string) error {
		if err := missing[name]; err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		began := time.Now()
		err := probe(ctx, byName[name])
		cfg.Log.Debug("probed sandbox driver", "driver", name, "took", time.Since(began), "error", err)
		return err
	}
	if cfg.Sandbox != "auto" {
		if err := try(cfg.Sandbox); err != nil {
			return "", fmt.Errorf("--sandbox %s does not work here: %w", cfg.Sandbox, err)
		}
		return cfg.Sandbox, nil
	}
	var errs []error
	order := []string{"gvisor", "qemu", "runc"}
	if kvmIsPlausible() {
		if cfg.Accel != string(qemu.AccelTCG) {
			if err := try("firecracker"); err == nil {
				return "firecracker", nil
			}
		}
		if err := try("qemu"); err == nil && byName["qemu"].Capabilities().HardwareVirtualization {
			return "qemu", nil
		}
	}
	for _, name := range order {
		err := try(name)
		if err == nil {
			return name, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	return "", fmt.Errorf("--sandbox auto: no driver works on this machine: %w", errors.Join(errs...))
}

// kvmIsPlausible saves the time of a probe that cannot succeed: KVM needs a
// processor with hardware virtualization, and a /dev/kvm that merely opens
// proves nothing.
func kvmIsPlausible() bool {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return false
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(info)) {
		if !strings.HasPrefix(line, "flags") {
			continue
		}
		for _, f := range strings.Fields(line) {
			if f == "vmx" || f == "svm" {
				return true
			}
		}
		return false
	}
	return false
}
