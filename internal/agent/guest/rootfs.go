package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// makeRoot makes the function's view of the world the root of the calling
// process, which must have a mount namespace of its own.
func makeRoot(conf *agentpb.ConfigureRequest) error {
	disks, err := diskNumbers()
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	size := "size=50%"
	if conf.DiskBytes > 0 {
		size = fmt.Sprintf("size=%d", conf.DiskBytes)
	}
	if err := (mount{"over", overDir, "tmpfs", 0, "mode=0755," + size}).do(); err != nil {
		return err
	}
	upper, work := filepath.Join(overDir, "upper"), filepath.Join(overDir, "work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	overlay := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lowerDir, upper, work)
	if err := (mount{"root", rootDir, "overlay", 0, overlay}).do(); err != nil {
		return err
	}
	if err := switchRoot(rootDir); err != nil {
		return err
	}
	// From here on every path is the image's, whose symbolic links can lead
	// nowhere else. Its files come first: there is no /proc to lead into yet.
	if err := writeNames(namesOf(conf), conf.Dns); err != nil {
		return err
	}
	if err := mountKernel(); err != nil {
		return err
	}
	return makeDisks(disks)
}

// switchRoot makes dir the root and hides the initramfs below it for good:
// an initramfs cannot be unmounted, or given to pivot_root.
func switchRoot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// writeNames writes the files by which programs find names.
func writeNames(n names, dns []string) error {
	var resolv strings.Builder
	for _, a := range dns {
		fmt.Fprintf(&resolv, "nameserver %s\n", a)
	}
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	resolver := etcFile{"etc/resolv.conf", func(names) string { return resolv.String() }}
	for _, f := range append([]etcFile{resolver}, etcFiles...) {
		text := f.text(n)
		if text == "" && f.path == machineIDPath {
			continue
		}
		name := "/" + f.path
		// It may be a link that leads nowhere, or a directory.
		if err := os.RemoveAll(name); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	// Images FROM scratch have no /tmp, and programs expect one.
	if _, err := os.Lstat("/tmp"); errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir("/tmp", 0o777); err != nil {
			return err
		}
		return os.Chmod("/tmp", 0o777|os.ModeSticky)
	}
	return nil
}

const shmSize = "64m" // what container runtimes give

// mountKernel mounts what a container has, with the same parts hidden.
func mountKernel() error {
	for _, m := range []mount{
		{"proc", "/proc", "proc", noFiles, ""},
		{"sysfs", "/sys", "sysfs", noFiles | unix.MS_RDONLY, ""},
		// Runtimes (Java, Go, Node) size heaps and pools by these limits.
		{"cgroup", "/sys/fs/cgroup", "cgroup2", noFiles | unix.MS_RDONLY, ""},
		{"tmpfs", "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=0755,size=64k"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"shm", "/dev/shm", "tmpfs", noFiles, "mode=1777,size=" + shmSize},
		{"mqueue", "/dev/mqueue", "mqueue", noFiles, ""},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := makeDevices(); err != nil {
		return err
	}
	for _, p := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		if err := readOnly(p); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("make %s read-only: %w", p, err)
		}
	}
	for _, p := range []string{
		"/proc/acpi", "/proc/cmdline", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/kmsg",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/sys/firmware",
	} {
		if err := mask(p); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("hide %s: %w", p, err)
		}
	}
	return nil
}

func readOnly(path string) error {
	if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|noFiles, "")
}

func mask(path string) error {
	err := unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
	if errors.Is(err, unix.ENOTDIR) {
		err = unix.Mount("tmpfs", path, "tmpfs", unix.MS_RDONLY|noFiles, "size=0k")
	}
	return err
}

func makeDevices() error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		if err := unix.Mknod("/dev/"+d.name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.name, err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx", "core": "/proc/kcore",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}
