package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Paths in the jail, which Firecracker sees.
const (
	apiSocket   = "/api.sock"
	pagerSocket = "/pager.sock"
	kernelPath  = "/kernel"
	initrdPath  = "/initrd"
	rootPath    = "/rootfs"
	memoryPath  = "/memory"
	statePath   = "/state"
	saveDir     = "/save" // the only folder that the monitor may write to, besides the root
)

func diskPath(i int) string { return fmt.Sprintf("/disk%d", i) }

// jail is a folder that the jailer makes the root of a monitor. Files of
// others' are mounted into it, in a mount namespace that only the monitor has:
// it ends with it.
type jail struct {
	top  string // what is to be removed
	root string
	uid  int
}

// bind is a file to mount, read-only, on a path in the jail.
type bind struct{ source, target string }

// newJail makes the folder that the jailer would: <dir>/<program>/<id>/root.
func newJail(dir, program, id string, uid uint32) (*jail, error) {
	top := filepath.Join(dir, filepath.Base(program))
	j := &jail{top: top, root: filepath.Join(top, id, "root"), uid: int(uid)}
	err := os.MkdirAll(j.root, 0o700)
	if err == nil {
		err = os.Mkdir(j.path(saveDir), 0o700)
	}
	if err == nil {
		err = os.Chown(j.path(saveDir), j.uid, j.uid)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("jail: %w", err), j.remove())
	}
	return j, nil
}

// path is a path in the jail, seen from outside.
func (j *jail) path(inside string) string { return filepath.Join(j.root, inside) }

func (j *jail) remove() error {
	if err := os.RemoveAll(j.top); err != nil {
		return fmt.Errorf("jail: %w", err)
	}
	return nil
}

// give makes a file that the monitor can read.
func (j *jail) give(inside string, content []byte) error {
	path := j.path(inside)
	err := os.WriteFile(path, content, 0o400)
	if err == nil {
		err = os.Chown(path, j.uid, j.uid)
	}
	if err != nil {
		return fmt.Errorf("jail: %w", err)
	}
	return nil
}

// targets makes the files that binds are mounted on, and checks that the
// monitor's user can read what will be there.
func (j *jail) targets(binds []bind) error {
	for _, b := range binds {
		info, err := os.Stat(b.source)
		if err != nil {
			return fmt.Errorf("jail: %w", err)
		}
		if info.Mode()&0o004 == 0 {
			return fmt.Errorf("jail: %s has mode %s: the monitor's user cannot read it; give it o+r (what keeps others away is its folder)", b.source, info.Mode().Perm())
		}
		if err := os.WriteFile(j.path(b.target), nil, 0o400); err != nil {
			return fmt.Errorf("jail: %w", err)
		}
	}
	return nil
}

// withMounts runs start in a mount namespace of its own that has the binds.
// Processes that start starts are in it. It runs in another goroutine, on a
// thread that ends afterwards.
func (j *jail) withMounts(binds []bind, start func() error) error {
	done := make(chan error, 1)
	go func() { done <- onOwnThread(func() error { return j.mountAnd(binds, start) }) }()
	return <-done
}

// onOwnThread runs fn on a thread that is thrown away, as its namespaces are
// not the process's any more; never on the main one, which cannot be.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Hold on to it until another thread has done the work.
			inner := make(chan struct{})
			go func() { defer close(inner); run() }()
			<-inner
			runtime.UnlockOSThread()
			return
		}
		done <- fn() // and end locked
	}
	go run()
	return <-done
}

func (j *jail) mountAnd(binds []bind, start func() error) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("jail: mount namespace: %w", err)
	}
	// What happens here stays here.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("jail: mount namespace: %w", err)
	}
	for _, b := range binds {
		target := j.path(b.target)
		if err := unix.Mount(b.source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("jail: mount %s: %w", b.source, err)
		}
		const flags = unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		if err := unix.Mount("", target, "", flags, ""); err != nil {
			return fmt.Errorf("jail: mount %s read-only: %w", b.source, err)
		}
	}
	return start()
}

// shortly calls fn with a path of a file in the jail that fits into a socket's
// address, however long the jail's own is.
func (j *jail) shortly(inside string, fn func(path string) error) error {
	fd, err := unix.Open(j.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("jail: open %s: %w", j.root, err)
	}
	defer unix.Close(fd) //nolint:errcheck // a path only
	return fn(fmt.Sprintf("/proc/self/fd/%d%s", fd, inside))
}

// dial connects to the monitor's API. It tries again until the monitor listens,
// ctx ends, or the monitor does.
func (j *jail) dial(ctx context.Context, dead <-chan struct{}) (net.Conn, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		var conn net.Conn
		err := j.shortly(apiSocket, func(path string) (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
			return err
		})
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the monitor's API: %w", ctx.Err())
		}
		t := time.NewTimer(pause)
		select {
		case <-dead:
			t.Stop()
			return nil, errors.New("the monitor has ended")
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// listen makes the socket on which the monitor finds its page-fault handler.
func (j *jail) listen() (*net.UnixListener, error) {
	var l *net.UnixListener
	err := j.shortly(pagerSocket, func(path string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err == nil {
		l.SetUnlinkOnClose(false) // the name is of no use any more; the jail goes as a whole
		err = os.Chown(j.path(pagerSocket), j.uid, j.uid)
	}
	if err != nil {
		if l != nil {
			_ = l.Close()
		}
		return nil, fmt.Errorf("jail: socket of the pager: %w", err)
	}
	return l, nil
}
