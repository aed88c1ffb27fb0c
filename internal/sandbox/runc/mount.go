package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
)

// mountRoot mounts the image, the space to write, and both as one.
func mountRoot(ctx context.Context, s *sandbox.Spec) error {
	lower, rw, root := filepath.Join(s.Dir, lowerDir), filepath.Join(s.Dir, writeDir), filepath.Join(s.Dir, rootDir)
	for _, dir := range []string{lower, rw, root} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
	}
	if err := mountImage(s.Rootfs, lower); err != nil {
		return err
	}
	// Inodes cost memory too: as many as there are pages, and a few for the
	// smallest of disks.
	opts := fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", s.Resources.DiskBytes, s.Resources.DiskBytes/4096+1024)
	if err := unix.Mount("tmpfs", rw, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, opts); err != nil {
		return fmt.Errorf("mount a tmpfs of %d bytes: %w", s.Resources.DiskBytes, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	upper, work := filepath.Join(rw, "upper"), filepath.Join(rw, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o700)); err != nil {
		return fmt.Errorf("make the overlay's directories: %w", err)
	}
	// The root directory's owner and mode come from upper.
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return fmt.Errorf("rootfs: %w", err)
	}
	if err := errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777)); err != nil {
		return fmt.Errorf("rootfs: %w", err)
	}
	opts = "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", root, "overlay", unix.MS_NODEV|unix.MS_NOSUID, opts); err != nil {
		return fmt.Errorf("mount overlay on %s: %w", root, err)
	}
	return nil
}

// mountImage mounts an EROFS image, straight from its file where the kernel
// can (6.12), and through a loop device elsewhere.
func mountImage(image, dir string) error {
	const flags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID
	err := unix.Mount(image, dir, "erofs", flags, "")
	if errors.Is(err, unix.ENOTBLK) {
		err = withLoop(image, func(device string) error {
			return unix.Mount(device, dir, "erofs", flags, "")
		})
	}
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("rootfs: mount %s: %w; the kernel has no EROFS: modprobe erofs", image, err)
	case err != nil:
		return fmt.Errorf("rootfs: mount %s as EROFS: %w", image, err)
	}
	return nil
}

// withLoop attaches a file to a loop device while fn mounts it. The device
// detaches itself when it is not mounted any more.
func withLoop(file string, fn func(device string) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("loop devices: %w; modprobe loop", err)
	}
	defer control.Close()
	for range 50 { // another process may take the free one first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("find a free loop device: %w", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		loop, err := os.OpenFile(name, os.O_RDONLY, 0)
		if err != nil {
			return fmt.Errorf("open loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd())}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			err = fn(name)
			loop.Close()
			return err
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("attach %s to %s: %w", file, name, err)
		}
	}
	return errors.New("find a free loop device: others took all that were free")
}

// unmountAll unmounts everything at and below dir, the newest first. A mount
// that is busy for more than a moment is detached: it goes when its last
// user does.
func unmountAll(ctx context.Context, dir string) error {
	start := time.Now()
	return poll(ctx, func() (bool, error) {
		points, err := mountsBelow(dir)
		if err != nil {
			return true, err
		}
		flags := unix.UMOUNT_NOFOLLOW
		if time.Since(start) > time.Second {
			flags |= unix.MNT_DETACH
		}
		busy := false
		for _, p := range slices.Backward(points) {
			err := unix.Unmount(p, flags)
			switch {
			case errors.Is(err, unix.EBUSY):
				busy = true
			case err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT): // already gone
				return true, fmt.Errorf("unmount %s: %w", p, err)
			}
		}
		return !busy, nil
	})
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

func mountsBelow(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 {
			if p := unescape(f[4]); p == dir || strings.HasPrefix(p, dir+"/") {
				points = append(points, p)
			}
		}
	}
	return points, nil
}

// poll calls fn until it is done, less and less often.
func poll(ctx context.Context, fn func() (done bool, err error)) error {
	wait := time.Millisecond
	for {
		done, err := fn()
		if done || err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		wait = min(wait*3/2, 50*time.Millisecond)
	}
}
