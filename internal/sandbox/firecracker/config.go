// Package firecracker is the sandbox driver that runs each function in a
// virtual machine of its own with Firecracker, a monitor made for nothing else.
// It needs KVM. Firecracker's own jailer confines the monitor: root folder,
// user, network, process numbers; its built-in seccomp filters stay on.
//
// The guest is the one of the qemu driver: a kernel of the distribution, and
// skep-agent as its first process.
package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/skep-dev/skep/internal/agent/guestbin"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
)

// Name of the driver.
const Name = "firecracker"

// InstallDir is where skep setup puts the programs, and where they are looked
// for before PATH.
const InstallDir = guestkernel.Dir

// Config configures the driver.
type Config struct {
	// CacheDir is where the unpacked kernel and the initramfs are kept. It is
	// made if missing.
	CacheDir string
	// Firecracker and Jailer are the paths of the programs, of the same
	// release and linked statically; "" looks in InstallDir and PATH.
	Firecracker, Jailer string
	// Kernel is as in the qemu driver's configuration.
	Kernel string
	// Agent is the program skep-agent; nil is the embedded one.
	Agent []byte
	// CPUTemplate hides differences between processors, so that snapshots can
	// be restored on others: the name of one of Firecracker's own (C3, T2,
	// T2S, T2CL, T2A), or the path of a file that its cpu-template-helper made.
	CPUTemplate string
	// HugePages backs guests with pages of 2 MiB from the host's pool (see
	// vm.nr_hugepages). Their snapshots can be restored only by the pager, and
	// hold what changed in units of 2 MiB.
	HugePages bool
	// NoDirtyTracking leaves out the tracking of written pages: machines write
	// their memory a little faster for the first time, and snapshots with
	// SaveOptions.Diff hold what is in memory, not just what changed.
	NoDirtyTracking bool
	// Balloon gives free memory of guests back to the host as they report it.
	Balloon bool
	// BalloonMiB is what the balloon takes besides, of what guests can spare,
	// such as their page cache. They get it back before they run out of memory.
	// It needs Balloon.
	BalloonMiB int64
	// DiskRate limits each disk, ReceiveRate and SendRate each network card,
	// from the guest's side. Nil is no limit.
	DiskRate, ReceiveRate, SendRate *fcapi.RateLimiter
	// MMDS is a JSON object of at most MaxMMDS bytes that guests can ask for at
	// http://169.254.169.254, with a token (MMDSv2). Nil: nobody answers there.
	MMDS json.RawMessage
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// MaxMMDS is how long metadata can be, in bytes.
const MaxMMDS = 51200

// staticTemplates are the CPU templates built into Firecracker for x86_64.
var staticTemplates = []string{"C3", "T2", "T2S", "T2CL", "T2A"}

// New checks the configuration and finds what the driver needs. It starts
// nothing: Probe does.
func New(c Config) (*Driver, error) {
	d, err := newDriver(c)
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	return d, nil
}

func newDriver(c Config) (*Driver, error) {
	if !filepath.IsAbs(c.CacheDir) {
		return nil, fmt.Errorf("cache dir: %q is not absolute", c.CacheDir)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	d := &Driver{conf: c, log: c.Log, booting: make(chan struct{}, runtime.NumCPU()+1)}
	program, err := findProgram("firecracker", c.Firecracker)
	if err != nil {
		return nil, err
	}
	d.program = microvm.NewProgram(program)
	if d.jailer, err = findProgram("jailer", c.Jailer); err != nil {
		return nil, err
	}
	if err := d.setOptions(); err != nil {
		return nil, err
	}
	kernel, err := (guestkernel.Finder{Path: c.Kernel}).Find()
	if err != nil {
		return nil, err
	}
	agent := c.Agent
	if agent == nil {
		if agent, err = guestbin.Agent(); err != nil {
			return nil, err
		}
	}
	modules := microvm.Modules()
	if c.Balloon {
		modules = append(modules, "virtio_balloon")
	}
	d.files = microvm.NewBootFiles(microvm.BootFiles{
		Dir: c.CacheDir, Kernel: kernel, Agent: agent, Modules: modules, Log: c.Log,
	})
	return d, nil
}

// Check says what is wrong with the options that need no program: CPUTemplate,
// which is read, Balloon and MMDS.
func (c Config) Check() error { return (&Driver{conf: c}).setOptions() }

// setOptions checks options, and takes them over.
func (d *Driver) setOptions() (err error) {
	c := &d.conf
	if c.CPUTemplate != "" && !slices.Contains(staticTemplates, c.CPUTemplate) {
		b, err := readBounded(c.CPUTemplate, maxTemplate)
		if err != nil {
			return fmt.Errorf("CPU template: neither one of %v nor a file: %w", staticTemplates, err)
		}
		if d.template, err = parseTemplate(b); err != nil {
			return fmt.Errorf("CPU template: %s: %w", c.CPUTemplate, err)
		}
		d.cpuConfig, c.CPUTemplate = b, ""
	}
	if c.BalloonMiB < 0 || c.BalloonMiB > 0 && !c.Balloon {
		return fmt.Errorf("balloon: %d MiB, and Balloon is %v", c.BalloonMiB, c.Balloon)
	}
	if c.MMDS != nil {
		if c.MMDS, err = compactObject(c.MMDS, MaxMMDS); err != nil {
			return fmt.Errorf("metadata: %w", err)
		}
	}
	return nil
}

// findProgram returns the real path of a program, whose last element names its
// folder in the jail.
func findProgram(name, path string) (string, error) {
	if path == "" {
		path = filepath.Join(InstallDir, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if path, err = exec.LookPath(name); err != nil {
				return "", fmt.Errorf("%s is neither in %s nor on PATH: skep setup", name, InstallDir)
			}
		}
	}
	path, err := filepath.Abs(path)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s: %s is not a program", name, path)
	}
	return path, nil
}
