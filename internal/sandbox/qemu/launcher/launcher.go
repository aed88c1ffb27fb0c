// Package launcher starts QEMU with what it cannot be told on its command line.
//
// QEMU marks the guest's memory with MADV_HUGEPAGE. Where that memory is a
// snapshot's file, mapped copy on write, each touch of a page that is not in
// the page cache then reads 2 MiB in place of 4 KiB. A seccomp filter lets that
// one call succeed without doing anything.
//
// A postcopy migration needs userfaultfd, which the kernel gives to ordinary
// users only with CAP_SYS_PTRACE (or sysctl vm.unprivileged_userfaultfd=1, or,
// with QEMU 8.1 and later, access to /dev/userfaultfd). That capability lets a
// process read all others, so it comes with a Landlock domain, from within
// which no process outside can be traced or looked into.
//
// Both are properties of a thread that its children inherit, and there is no
// way back. So they are set on a thread that starts the process and then ends:
// there is no other program in between, which would take time.
package launcher

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is wrapped when this machine's kernel lacks what an option
// needs.
var ErrUnsupported = errors.New("not supported by this kernel")

// Options say what to start a process with. It has no_new_privs in any case.
type Options struct {
	// NoHugePages makes madvise(MADV_HUGEPAGE) do nothing. It costs the guest
	// its huge pages: not for memory that is filled before use.
	NoHugePages bool
	// Userfaultfd lets the process use userfaultfd, whatever its user.
	Userfaultfd bool
	// Filter is a further seccomp program, if not empty.
	Filter []unix.SockFilter
}

// Start is cmd.Start with the options. Everything else of cmd is as ever, but
// SysProcAttr.Pdeathsig, which is refused: it would tell of the end of a thread
// that ends at once. SysProcAttr may be changed.
func Start(cmd *exec.Cmd, o Options) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.SysProcAttr.Pdeathsig != 0 {
		return errors.New("launch: Pdeathsig cannot be used, the thread it belongs to ends")
	}
	contain := o.Userfaultfd && !userfaultfdForAll()
	if contain {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, unix.CAP_SYS_PTRACE)
	}
	return onThread(func() error {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("launch: set no_new_privs: %w", err)
		}
		if contain {
			if err := isolate(); err != nil {
				return fmt.Errorf("launch: %w", err)
			}
		}
		if o.NoHugePages {
			if err := ignoreHugePages(); err != nil {
				return fmt.Errorf("launch: %w", err)
			}
		}
		if len(o.Filter) > 0 {
			if err := install(o.Filter); err != nil {
				return fmt.Errorf("launch: %w", err)
			}
		}
		return cmd.Start()
	})
}

// onThread runs f on a thread that ends after it. It is not the process's main
// thread: that one cannot end, and /proc/self shows it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: so the thread ends with this
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return
		}
		// While this goroutine has the main thread, no other can get it.
		inner := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			inner <- f()
		}()
		done <- <-inner
		runtime.UnlockOSThread()
	}()
	return <-done
}

// userfaultfdForAll tells whether everybody may use userfaultfd.
func userfaultfdForAll() bool {
	v, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd")
	return err == nil && strings.TrimSpace(string(v)) == "1"
}
