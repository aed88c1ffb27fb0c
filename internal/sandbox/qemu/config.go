// Package qemu is the sandbox driver that runs each function in a virtual
// machine of its own: QEMU's microvm, with a kernel of the distribution, and
// skep-agent as its first process. It uses KVM where that works, and emulates
// the processor where it does not.
package qemu

import (
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/skep-dev/skep/internal/agent/guestbin"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
)

// Accel is how the guest's processor is provided.
type Accel string

const (
	// AccelAuto is KVM if a machine boots with it here, else TCG.
	AccelAuto Accel = "auto"
	// AccelKVM is hardware virtualization.
	AccelKVM Accel = "kvm"
	// AccelTCG is emulation.
	AccelTCG Accel = "tcg"
)

// Config configures the driver.
type Config struct {
	// CacheDir is where the unpacked kernel and the initramfs are kept. It is
	// made if missing.
	CacheDir string
	// QEMU is the path of qemu-system-x86_64; "" is looked up in PATH.
	QEMU string
	// Kernel is the path of the guest's kernel; "" finds one, see
	// guestkernel.Finder. Modules are in "modules" beside it, or in
	// /lib/modules under the version in its name.
	Kernel string
	// KernelArgs are added to the guest kernel's command line.
	KernelArgs []string
	// Accel is AccelAuto if empty.
	Accel Accel
	// Proved says that AccelKVM has been proved already, as by the process that
	// started this one: no machine is booted to prove it.
	Proved bool
	// Agent is the program skep-agent; nil is the embedded one.
	Agent []byte
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// program and its Debian package.
const (
	program = "qemu-system-x86_64"
	debian  = "qemu-system-x86"
)

// New checks the configuration and finds what the driver needs. It starts
// nothing: Probe does.
func New(c Config) (*Driver, error) {
	d := &Driver{
		log: c.Log, accel: c.Accel, kernelArgs: c.KernelArgs,
		booting: make(chan struct{}, runtime.NumCPU()+1), resuming: make(chan struct{}, runtime.NumCPU()+1), probing: make(chan struct{}, 1),
	}
	if !filepath.IsAbs(c.CacheDir) {
		return nil, fmt.Errorf("qemu: cache dir: %q is not absolute", c.CacheDir)
	}
	switch c.Accel {
	case "":
		d.accel = AccelAuto
	case AccelAuto, AccelKVM, AccelTCG:
	default:
		return nil, fmt.Errorf("qemu: accel: %q is none of auto, kvm, tcg", c.Accel)
	}
	d.proved.Store(c.Proved && c.Accel == AccelKVM)
	if d.log == nil {
		d.log = slog.Default()
	}
	name := c.QEMU
	if name == "" {
		name = program
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if c.QEMU == "" && errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("qemu: %s is not installed: apt-get install %s", program, debian)
		}
		return nil, fmt.Errorf("qemu: %w", err)
	}
	d.program = microvm.NewProgram(path)
	kernel, err := (guestkernel.Finder{Path: c.Kernel}).Find()
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	agent := c.Agent
	if agent == nil {
		if agent, err = guestbin.Agent(); err != nil {
			return nil, fmt.Errorf("qemu: %w", err)
		}
	}
	d.files = microvm.NewBootFiles(microvm.BootFiles{
		Dir: c.CacheDir, Kernel: kernel, Agent: agent, Modules: microvm.Modules(), Log: d.log,
	})
	return d, nil
}
