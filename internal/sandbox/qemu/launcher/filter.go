package launcher

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. Numbers are the machine's own, which is
// little endian.
const (
	offNumber  = 0
	offArch    = 4
	offAdvice  = 16 + 2*8 // madvise's third argument, of which the kernel takes 32 bits
	retErrno0  = 0x00050000
	retAllow   = 0x7fff0000
	setFilter  = 1 // SECCOMP_SET_MODE_FILTER
	loadWord   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	jumpEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	returnWord = unix.BPF_RET | unix.BPF_K
)

// auditArch is how seccomp names a processor.
var auditArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64,
	"arm64": unix.AUDIT_ARCH_AARCH64,
}

// hugePageFilter returns success for madvise(..., MADV_HUGEPAGE) of the given
// architecture, and allows everything else: it protects nobody. QEMU's own
// filters come on top of it.
func hugePageFilter(arch uint32) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: loadWord, K: offArch},
		{Code: jumpEqual, K: arch, Jf: 5},
		{Code: loadWord, K: offNumber},
		{Code: jumpEqual, K: unix.SYS_MADVISE, Jf: 3},
		{Code: loadWord, K: offAdvice},
		{Code: jumpEqual, K: unix.MADV_HUGEPAGE, Jf: 1},
		{Code: returnWord, K: retErrno0},
		{Code: returnWord, K: retAllow},
	}
}

// ignoreHugePages installs that filter.
func ignoreHugePages() error {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("seccomp filter for %s: %w", runtime.GOARCH, ErrUnsupported)
	}
	return install(hugePageFilter(arch))
}

// install installs a filter for this thread and its children.
func install(filter []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, setFilter, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	return nil
}
