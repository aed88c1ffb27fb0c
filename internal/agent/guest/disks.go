package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Where the kernel shows disks and their driver.
const (
	blockClass = "/sys/block"
	diskDriver = "/sys/bus/virtio/drivers/virtio_blk"
)

// extraDisks lists the disks after the root's, such as vdb.
func extraDisks() ([]string, error) {
	all, err := filepath.Glob("/dev/vd?")
	if err != nil {
		return nil, err
	}
	var disks []string
	for _, path := range all { // sorted
		if path != rootDisk {
			disks = append(disks, filepath.Base(path))
		}
	}
	return disks, nil
}

// lookAgain has the driver let go of every disk but the root's and take it up
// again, so that neither its size nor anything of its content is left of what
// was there when the snapshot was made. A disk gets its old name back: names
// are given in order, and the first free one is its own. Disks that are mounted
// stay: they would not give their names back, and the host has seen that they
// are what they were.
func lookAgain() error {
	disks, err := extraDisks()
	if err != nil {
		return fmt.Errorf("list disks: %w", err)
	}
	if len(disks) == 0 {
		return nil
	}
	if err := (mount{"sysfs", "/sys", "sysfs", noFiles, ""}).do(); err != nil {
		return err
	}
	defer unix.Unmount("/sys", unix.MNT_DETACH) //nolint:errcheck // a mount of our own
	// The function's own mount, which is read-only, has made all of them so.
	if err := unix.Mount("", "/sys", "", unix.MS_REMOUNT|noFiles, ""); err != nil {
		return fmt.Errorf("make /sys writable: %w", err)
	}
	for _, name := range disks {
		used, err := inUse("/dev/" + name)
		if err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
		if used {
			continue
		}
		link, err := os.Readlink(filepath.Join(blockClass, name, "device"))
		if err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
		device := filepath.Base(link)
		for _, action := range []string{"unbind", "bind"} {
			if err := os.WriteFile(filepath.Join(diskDriver, action), []byte(device), 0); err != nil {
				return fmt.Errorf("disk %s: %s: %w", name, action, err)
			}
		}
		if _, err := os.Stat(filepath.Join(blockClass, name)); err != nil {
			return fmt.Errorf("disk %s has another name now: %w", name, err)
		}
	}
	return nil
}

// inUse says if a disk is mounted, wherever.
func inUse(device string) (bool, error) {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, unix.Close(fd)
}

// makeDisks makes the nodes of the disks after the root's in the function's
// /dev, for reading.
func makeDisks(disks []diskNumber) error {
	for _, d := range disks {
		err := unix.Mknod("/dev/"+d.name, unix.S_IFBLK|0o444, int(unix.Mkdev(d.major, d.minor)))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make /dev/%s: %w", d.name, err)
		}
	}
	return nil
}

// diskNumber is what a device node of a disk says.
type diskNumber struct {
	name         string
	major, minor uint32
}

// diskNumbers looks the disks after the root's up, while the kernel's own /dev
// is in sight.
func diskNumbers() ([]diskNumber, error) {
	disks, err := extraDisks()
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var numbers []diskNumber
	for _, name := range disks {
		var st unix.Stat_t
		if err := unix.Stat("/dev/"+name, &st); err != nil {
			return nil, fmt.Errorf("disk %s: %w", name, err)
		}
		numbers = append(numbers, diskNumber{name, unix.Major(st.Rdev), unix.Minor(st.Rdev)})
	}
	return numbers, nil
}

// Mount mounts a disk in the function's file system.
func (g *guest) Mount(disk uint32, target string) error {
	g.mu.Lock()
	main := g.procs[function]
	g.mu.Unlock()
	if main == nil {
		return errors.New("the function has not been started")
	}
	disks, err := extraDisks()
	if err != nil {
		return err
	}
	if int(disk) >= len(disks) {
		return fmt.Errorf("there is no disk %d", disk)
	}
	fs, err := openFileSystem("/dev/" + disks[disk])
	if err != nil {
		return err
	}
	defer unix.Close(fs) //nolint:errcheck // attached by then, or of no use
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock it: it has entered namespaces
		done <- attach(fs, main.proc.Pid, target)
	}()
	return <-done
}

// openFileSystem makes a mount that is nowhere yet.
func openFileSystem(device string) (int, error) {
	var errs []error
	for _, kind := range []string{"erofs", "ext4"} {
		fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
		if err == nil {
			mnt, err := mountOf(fs, device)
			_ = unix.Close(fs)
			if err == nil {
				return mnt, nil
			}
			errs = append(errs, fmt.Errorf("as %s: %w", kind, err))
			continue
		}
		errs = append(errs, fmt.Errorf("as %s: %w", kind, err))
	}
	return -1, fmt.Errorf("mount %s: %w", device, errors.Join(errs...))
}

func mountOf(fs int, device string) (int, error) {
	if err := unix.FsconfigSetString(fs, "source", device); err != nil {
		return -1, err
	}
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// attach puts a mount into a process's file system. The thread is of no use
// after.
func attach(mnt, pid int, target string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("the function has ended: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the function's namespaces: %w", err)
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount on %s: %w", target, err)
	}
	return nil
}
