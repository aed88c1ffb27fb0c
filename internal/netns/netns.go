// Package netns enters, makes and removes Linux network namespaces.
//
// A namespace is named by a path: a bind mount made by [Create], or any
// /proc/PID/ns/net. In Linux the namespace belongs to the thread, and Go moves
// goroutines between threads at will; everything here therefore happens on a
// thread that is locked for as long as it is away from home, and that dies
// instead of going back to the runtime if it cannot be brought home.
//
// All functions need CAP_SYS_ADMIN.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// home is the calling thread's own namespace.
const home = "/proc/thread-self/ns/net"

// Do runs fn in the network namespace at path and returns its error. A panic
// in fn continues in the caller.
//
// fn runs in a goroutine of its own, locked to its thread. Only what this
// goroutine itself does is in the namespace (processes that it starts
// included): goroutines started in fn run elsewhere, in the process's own
// namespace. This concerns, in package net, names that need resolving and
// dialling several addresses at once; use literal addresses. Sockets stay in
// the namespace in which they were made, so fn may return a listener, and
// [Dial] makes connections faster.
func Do(path string, fn func() error) error {
	return onThread(func() error {
		target, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", path, err)
		}
		defer unix.Close(target)
		if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return fn()
	})
}

// Create makes a new, empty network namespace (its loopback interface is
// down) and mounts it on path, which must not exist. The namespace of the
// caller does not change.
func Create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create mount point of network namespace: %w", err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace for %s: %w", path, err)
		}
		if err := unix.Mount(home, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount network namespace on %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Remove unmounts what [Create] mounted and removes path. It is idempotent.
// The kernel removes the namespace itself, and all interfaces in it, soon
// after the last process and the last socket in it are gone: Remove does not
// wait for this.
func Remove(path string) error {
	// Lazily, because somebody may be opening the path at this moment.
	// EINVAL: it is no mount point (any more).
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.ENOENT && err != unix.EINVAL {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	// Removing the mount point also detaches it in every other mount
	// namespace that happens to have a copy of it.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove mount point of network namespace: %w", err)
	}
	return nil
}

// onThread runs fn in a goroutine locked to its thread and brings the thread
// back to the network namespace it came from. The goroutine is a new one, so
// that if the way back is barred the caller is not caught in a foreign
// namespace: the goroutine ends locked, which ends the thread.
func onThread(fn func() error) error {
	c := &call{fn: fn, done: make(chan struct{})}
	go c.run()
	<-c.done
	switch {
	case c.returned:
		return c.err
	case c.panicked != nil:
		panic(c.panicked)
	default:
		// fn called runtime.Goexit, as t.FailNow does: so does its caller.
		runtime.Goexit()
		return nil
	}
}

// call is one call of onThread; all but fn is set when done is closed.
type call struct {
	fn       func() error
	done     chan struct{}
	err      error
	panicked any
	returned bool // rather than panicked or exited
}

func (c *call) run() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread stays at home: it cannot be given up, and its
		// namespace is the one that /proc/self shows. As long as it is
		// locked here, the next goroutine gets another.
		go c.run()
		<-c.done
		runtime.UnlockOSThread()
		return
	}
	defer close(c.done)
	origin, err := unix.Open(home, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread() // nothing has changed yet
		c.err, c.returned = fmt.Errorf("open own network namespace: %w", err), true
		return
	}
	defer func() {
		if !c.returned {
			c.panicked = recover() // nil after runtime.Goexit
		}
		err := unix.Setns(origin, unix.CLONE_NEWNET)
		unix.Close(origin)
		if err != nil {
			c.err = errors.Join(c.err, fmt.Errorf("return to own network namespace (the thread is given up): %w", err))
			return
		}
		runtime.UnlockOSThread()
	}()
	c.err = c.fn()
	c.returned = true
}
