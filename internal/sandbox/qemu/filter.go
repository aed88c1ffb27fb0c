package qemu

import "golang.org/x/sys/unix"

// QEMU opens the file of the guest's memory for writing even if it will map it
// copy-on-write, and no version up to 8.1 can be told otherwise. But one that
// is broken out of must not be able to change the memory that others are
// restored from. So the file is given to QEMU as its descriptor 0, open for
// reading, and a system call filter has QEMU's attempt to open it return 0.

// memoryPath is what QEMU tries to open. There is nothing of that name.
const memoryPath = "/nowhere/guest-memory"

// Of struct seccomp_data (linux/seccomp.h): system call, architecture, then
// arguments of 8 bytes, whose lower halves come first.
const (
	seccompNr   = 0
	seccompArch = 4
	seccompArg1 = 16 + 8
	seccompArg2 = 16 + 16
)

// returnZero makes a system call return 0 and do nothing: error number 0.
const returnZero = unix.SECCOMP_RET_ERRNO

// filter is the program for the kernel.
func filter() []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	// skip goes on with the next instruction if the value is k, and leaves n
	// out if not.
	skip := func(k uint32, n uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: n}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

	// Another architecture's calls have other numbers: QEMU makes none.
	f := []unix.SockFilter{
		load(seccompArch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AUDIT_ARCH_X86_64, Jt: 1},
		ret(unix.SECCOMP_RET_ALLOW),
		load(seccompNr),
	}
	call := func(nr, argument, value uint32) {
		f = append(f, skip(nr, 4), load(argument), skip(value, 1), ret(returnZero), ret(unix.SECCOMP_RET_ALLOW))
	}
	// Nothing else in QEMU opens with exactly these flags.
	call(unix.SYS_OPENAT, seccompArg2, unix.O_RDWR)
	call(unix.SYS_OPEN, seccompArg1, unix.O_RDWR)
	return append(f, ret(unix.SECCOMP_RET_ALLOW))
}
