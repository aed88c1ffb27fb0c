// Package guest is skep-agent's inside: PID 1 of a micro-VM. It lives in the
// initramfs, and runs the function in namespaces whose root is the image with
// a writable layer on top.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
)

// Paths in the initramfs, which the function never sees.
const (
	// ModuleList names the kernel modules to load, one path a line, in order.
	ModuleList = "/modules/order"
	lowerDir   = "/lower"   // the image, read-only
	overDir    = "/over"    // tmpfs with the writable layer
	rootDir    = "/newroot" // the two merged
	cgroupRoot = "/cgroup"
	rootDisk   = "/dev/vda"
)

// Main boots the guest and answers the host until the machine is stopped. It
// returns when something failed, or when the machine was only a test.
func Main() error {
	started, err := uptime()
	if err != nil {
		return err
	}
	if err := mountBasics(); err != nil {
		return err
	}
	params, err := readParams("/proc/cmdline")
	if err != nil {
		return err
	}
	if !params.probe {
		if err := checkTimers(timerList, params.timerKHz); err != nil {
			return err
		}
	}
	if err := loadModules(ModuleList); err != nil {
		return err
	}
	if params.probe {
		_, _ = fmt.Fprintln(os.Stdout, agent.ReadyMessage)
		return nil
	}
	if err := setUpNetwork(params); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := mountImage(params.disks); err != nil {
		return err
	}
	ctx := context.Background() // until the machine is stopped
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", net.JoinHostPort(params.address.IP.String(), fmt.Sprint(agent.Port)))
	if err != nil {
		return err
	}
	ready, err := uptime()
	if err != nil {
		return err
	}
	g := newGuest(started, ready-started)
	_, _ = fmt.Fprintln(os.Stdout, agent.ReadyMessage)
	return agent.Serve(ctx, l, params.gateway, g)
}

// PowerOff ends the virtual machine. "Restart" because that is what a machine
// started with -no-reboot ends on, with or without ACPI.
func PowerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

const noFiles = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV

func mountBasics() error {
	for _, m := range []mount{
		{"proc", "/proc", "proc", noFiles, ""},
		{"dev", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, ""},
		{"cgroup", cgroupRoot, "cgroup2", noFiles, ""},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// loadModules loads what the host chose for this kernel, in its order, and
// then frees the memory that the files take.
func loadModules(list string) error {
	b, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // everything is built in
	}
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(b)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load kernel module %s: %w", path, err)
		}
		_ = os.Remove(path)
	}
	return nil
}

func mountImage(disks int) error {
	for i := range disks + 1 {
		if err := awaitDisk(fmt.Sprintf("/dev/vd%c", 'a'+i)); err != nil {
			return err
		}
	}
	err := (mount{rootDisk, lowerDir, "erofs", unix.MS_RDONLY, ""}).do()
	if err == nil {
		return nil
	}
	// As other tools make them. The journal is not played: the disk is read-only.
	if (mount{rootDisk, lowerDir, "ext4", unix.MS_RDONLY, "noload"}).do() == nil {
		return nil
	}
	return fmt.Errorf("the image's root file system: %w", err)
}

// awaitDisk waits for a disk's node: a kernel thread makes it, a moment after
// its driver has been loaded.
func awaitDisk(path string) error {
	deadline := time.Now().Add(10 * time.Second)
	for pause := time.Millisecond; ; pause *= 2 {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("a disk has not appeared: %w", err)
		}
		<-time.After(pause)
	}
}
