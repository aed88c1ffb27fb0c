// Package pager serves the memory of a restored virtual machine from page
// sources through userfaultfd: page by page as the machine touches it, or
// ahead of it from a recorded working set.
//
// The descriptor is made by the process whose memory is served (nobody else
// can make it) and passed over a Unix socket with Firecracker's handshake.
// Closing it while a fault is in flight gives that process a page of zeros, so
// a Server always kills its process before it lets the descriptor go.
package pager

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Feature is a userfaultfd feature bit, asked for when the descriptor is made.
type Feature uint64

// Features that the pager knows.
const (
	FeatureWriteProtect  Feature = 1 << 0 // write-protect faults are reported
	FeatureEventRemove   Feature = 1 << 3 // MADV_DONTNEED, MADV_REMOVE are reported
	FeatureMissingHuge   Feature = 1 << 4 // hugetlbfs memory can be registered
	FeatureMissingShmem  Feature = 1 << 5 // shared memory can be registered
	FeatureEventUnmap    Feature = 1 << 6 // munmap is reported
	FeatureThreadID      Feature = 1 << 8 // faults carry the thread's id
	featureUnwantedFork  Feature = 1 << 1
	featureUnwantedRemap Feature = 1 << 2
)

// RegisterMode says which faults of a range are reported.
type RegisterMode uint64

// Modes of registration; they can be combined.
const (
	RegisterMissing      RegisterMode = 1 << 0
	RegisterWriteProtect RegisterMode = 1 << 1
)

// ErrUnsupported is returned where the kernel has no userfaultfd, forbids it,
// or lacks a feature that was asked for.
var ErrUnsupported = errors.New("userfaultfd not available")

const (
	apiVersion = 0xAA

	ioctlNew          = 0x0000AA00
	ioctlAPI          = 0xC018AA3F
	ioctlRegister     = 0xC020AA00
	ioctlUnregister   = 0x8010AA01
	ioctlWake         = 0x8010AA02
	ioctlCopy         = 0xC028AA03
	ioctlZeropage     = 0xC020AA04
	ioctlWriteProtect = 0xC018AA06

	modeDontWake     = 1 << 0
	modeWriteProtect = 1 << 0

	devicePath = "/dev/userfaultfd"
)

type (
	uffdAPI          struct{ api, features, ioctls uint64 }
	uffdRange        struct{ start, length uint64 }
	uffdRegister     struct{ start, length, mode, ioctls uint64 }
	uffdCopy         struct{ dst, src, length, mode, copied uint64 }
	uffdZeropage     struct{ start, length, mode, zeroed uint64 }
	uffdWriteProtect struct{ start, length, mode uint64 }
)

// UFFD is a userfaultfd descriptor. Its methods may be called concurrently,
// but not after Close. The page operations return bare unix.Errno values,
// because callers decide by them on every page:
//
//	EEXIST  the page is there already
//	EAGAIN  the address space is changing (read the events, then retry), or
//	        the operation was cut short; what was done counts
//	ENOENT  the range is not (or no longer) mapped and registered
//	ESRCH   the process is gone
type UFFD struct {
	fd     int
	closed atomic.Bool
}

// NewUFFD makes a descriptor for this process's memory, non-blocking and
// close-on-exec, with the given features. Its error wraps ErrUnsupported
// where the machine cannot.
func NewUFFD(features Feature) (*UFFD, error) {
	if features&(featureUnwantedFork|featureUnwantedRemap) != 0 {
		return nil, fmt.Errorf("%w: fork and remap events are not handled", ErrUnsupported)
	}
	fd, err := openUFFD()
	if err != nil {
		return nil, err
	}
	arg := uffdAPI{api: apiVersion, features: uint64(features)}
	if errno := ioctl(fd, ioctlAPI, unsafe.Pointer(&arg)); errno != 0 {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%w: features %#x: %w (a newer kernel is needed)", ErrUnsupported, uint64(features), errno)
	}
	return &UFFD{fd: fd}, nil
}

func openUFFD() (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0)
	if errno == 0 {
		return int(fd), nil
	}
	// Without the privilege, access to the device file is the other way.
	dev, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: userfaultfd: %w; %s: %w (run as root or give access to the device)",
			ErrUnsupported, errno, devicePath, err)
	}
	defer unix.Close(dev)
	fd, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, flags)
	if errno != 0 {
		return -1, fmt.Errorf("%w: %s: %w", ErrUnsupported, devicePath, errno)
	}
	return int(fd), nil
}

// AdoptUFFD takes over a descriptor that came from another process and checks
// that it is a userfaultfd. On error the descriptor is still the caller's.
func AdoptUFFD(fd int) (*UFFD, error) {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	if link != "anon_inode:[userfaultfd]" {
		return nil, fmt.Errorf("descriptor %d is %q, not a userfaultfd", fd, link)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("make userfaultfd non-blocking: %w", err)
	}
	return &UFFD{fd: fd}, nil
}

// FD is the descriptor's number, valid until Close.
func (u *UFFD) FD() int { return u.fd }

// Close closes the descriptor, once. Faults in flight are then answered by the
// kernel with pages of zeros, unless another holder of the descriptor is left:
// whoever they would harm must be dead.
func (u *UFFD) Close() error {
	if u.closed.Swap(true) {
		return nil
	}
	return unix.Close(u.fd)
}

// Register asks for faults of a range of this process's memory, which must be
// anonymous, memfd or hugetlbfs memory.
func (u *UFFD) Register(addr, length uint64, mode RegisterMode) error {
	arg := uffdRegister{start: addr, length: length, mode: uint64(mode)}
	if errno := ioctl(u.fd, ioctlRegister, unsafe.Pointer(&arg)); errno != 0 {
		return fmt.Errorf("register %#x+%#x with userfaultfd: %w", addr, length, errno)
	}
	return nil
}

// Unregister ends the reporting of a range; waiting threads go on and find
// zeros where nothing was installed.
func (u *UFFD) Unregister(addr, length uint64) error {
	arg := uffdRange{addr, length}
	if errno := ioctl(u.fd, ioctlUnregister, unsafe.Pointer(&arg)); errno != 0 {
		return fmt.Errorf("unregister %#x+%#x from userfaultfd: %w", addr, length, errno)
	}
	return nil
}

// Copy installs src at dst; both lengths and dst are multiples of the page
// size. It returns the bytes installed, also with an error. With wake false
// threads that wait for these pages sleep on until a Wake.
func (u *UFFD) Copy(dst uint64, src []byte, wake bool) (int, error) {
	if len(src) == 0 {
		return 0, nil
	}
	arg := uffdCopy{dst: dst, src: uint64(uintptr(unsafe.Pointer(&src[0]))), length: uint64(len(src)), mode: wakeMode(wake)}
	errno := ioctl(u.fd, ioctlCopy, unsafe.Pointer(&arg))
	runtime.KeepAlive(src)
	return done(arg.copied, arg.length, errno)
}

// Zero installs pages of zeros without allocating memory for them, like Copy.
// Huge pages cannot be installed so (EINVAL).
func (u *UFFD) Zero(dst, length uint64, wake bool) (int, error) {
	arg := uffdZeropage{start: dst, length: length, mode: wakeMode(wake)}
	errno := ioctl(u.fd, ioctlZeropage, unsafe.Pointer(&arg))
	return done(arg.zeroed, length, errno)
}

// Wake lets threads that wait for a page of the range look again.
func (u *UFFD) Wake(addr, length uint64) error {
	arg := uffdRange{addr, length}
	if errno := ioctl(u.fd, ioctlWake, unsafe.Pointer(&arg)); errno != 0 {
		return errno
	}
	return nil
}

// WriteProtect sets or clears the write protection of a range registered with
// RegisterWriteProtect. Clearing wakes the threads that wait.
func (u *UFFD) WriteProtect(addr, length uint64, protect bool) error {
	arg := uffdWriteProtect{start: addr, length: length}
	if protect {
		arg.mode = modeWriteProtect
	}
	if errno := ioctl(u.fd, ioctlWriteProtect, unsafe.Pointer(&arg)); errno != 0 {
		return errno
	}
	return nil
}

func wakeMode(wake bool) uint64 {
	if wake {
		return 0
	}
	return modeDontWake
}

// done reads the kernel's answer: bytes done, or a negative errno in the same
// field. The field stays zero when the arguments were refused.
func done(field, length uint64, errno unix.Errno) (int, error) {
	n := int64(field)
	if n < 0 || uint64(n) > length {
		n = 0
	}
	if errno != 0 {
		return int(n), errno
	}
	return int(n), nil
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) unix.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno != unix.EINTR {
			return errno
		}
	}
}
