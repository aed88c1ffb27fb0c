package launcher

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// isolate enters a Landlock domain. Its rule set forbids nothing but to make
// device files, which no sandbox does; what counts is the domain itself: who is
// in one cannot trace, or read the memory of, anybody outside (the kernel's
// Documentation/userspace-api/landlock.rst, "Ptrace restrictions"). It needs
// no_new_privs.
func isolate() error {
	attr := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK}
	// The first field alone is what the first version knows.
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errors.Is(errno, unix.ENOSYS) || errors.Is(errno, unix.EOPNOTSUPP) {
		return fmt.Errorf("userfaultfd for unprivileged QEMU needs Landlock (boot with lsm=landlock,...) or sysctl vm.unprivileged_userfaultfd=1: %w", ErrUnsupported)
	}
	if errno != 0 {
		return fmt.Errorf("make Landlock rule set: %w", errno)
	}
	defer unix.Close(int(fd)) //nolint:errcheck // nothing is lost
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("enter Landlock domain: %w", errno)
	}
	return nil
}
