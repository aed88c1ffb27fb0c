package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refusedCalls are system calls that no thread of a monitor has a reason for.
var refusedCalls = map[string]uint32{
	"execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "fork": unix.SYS_FORK, "clone": unix.SYS_CLONE, "clone3": unix.SYS_CLONE3,
	"ptrace": unix.SYS_PTRACE, "mount": unix.SYS_MOUNT, "unshare": unix.SYS_UNSHARE, "setns": unix.SYS_SETNS, "bpf": unix.SYS_BPF,
	"chmod": unix.SYS_CHMOD, "chown": unix.SYS_CHOWN, "unlink": unix.SYS_UNLINK, "setuid": unix.SYS_SETUID, "keyctl": unix.SYS_KEYCTL,
	"process_vm_readv": unix.SYS_PROCESS_VM_READV, "init_module": unix.SYS_INIT_MODULE, "userfaultfd": unix.SYS_USERFAULTFD,
}

// CheckFilters checks that the seccomp filters of a process's threads refuse
// what they should, by the filters themselves as the kernel has them: that there
// is one says nothing, as a build of Firecracker for glibc has empty ones. only
// is the threads to check by name; none is all.
func CheckFilters(t testing.TB, pid int, only ...string) {
	t.Helper()
	// By another process: what waits here for the end of a child would see it
	// stop.
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), filtersEnv+"="+strconv.Itoa(pid))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("read the seccomp filters of %d: %v, %s", pid, err, out)
	}
	var threads []threadFilters
	if err := json.Unmarshal(out, &threads); err != nil || len(threads) == 0 {
		t.Fatalf("the seccomp filters of %d: %d threads, %v", pid, len(threads), err)
	}
	for _, x := range threads {
		if len(only) > 0 && !slices.Contains(only, x.Name) {
			continue
		}
		for name, nr := range refusedCalls {
			if !refused(x.Filters, nr) {
				t.Errorf("thread %s: its seccomp filter allows %s", x.Name, name)
			}
		}
		if refused(x.Filters, unix.SYS_CLOSE) {
			t.Errorf("thread %s: its seccomp filter refuses close, which it needs", x.Name)
		}
		n := 0
		const calls = 450
		for nr := range uint32(calls) {
			if refused(x.Filters, nr) {
				n++
			}
		}
		t.Logf("thread %s: filters of %d instructions refuse %d of %d system calls whose arguments are 0", x.Name, len(slices.Concat(x.Filters...)), n, calls)
	}
}

// filtersEnv has this program print the filters of a process's threads.
const filtersEnv = "SKEP_TEST_FILTERS_OF"

type threadFilters struct {
	Name    string
	Filters [][]unix.SockFilter
}

func init() {
	of := os.Getenv(filtersEnv)
	if of == "" {
		return
	}
	threads, err := readFilters(of)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(threads)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func readFilters(pid string) (threads []threadFilters, err error) {
	tasks, err := filepath.Glob(filepath.Join("/proc", pid, "task/[0-9]*"))
	if err != nil {
		return nil, err
	}
	for _, task := range tasks {
		name, err := os.ReadFile(filepath.Join(task, "comm"))
		if err != nil {
			return nil, err
		}
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return nil, err
		}
		x := threadFilters{Name: strings.TrimSpace(string(name))}
		if x.Filters, err = filtersOf(tid); err != nil {
			return nil, fmt.Errorf("thread %s: %w", x.Name, err)
		}
		threads = append(threads, x)
	}
	return threads, nil
}

// filtersOf reads the seccomp filters of a thread, which stops for it.
func filtersOf(tid int) (filters [][]unix.SockFilter, err error) {
	runtime.LockOSThread() // which is what the kernel calls the tracer
	defer runtime.UnlockOSThread()
	const seize, interrupt = 0x4206, 0x4207
	if err := ptrace(seize, tid, 0, nil); err != nil {
		return nil, fmt.Errorf("seize: %w", err)
	}
	defer func() { err = errors.Join(err, ptrace(unix.PTRACE_DETACH, tid, 0, nil)) }()
	if err := ptrace(interrupt, tid, 0, nil); err != nil {
		return nil, fmt.Errorf("interrupt: %w", err)
	}
	var status unix.WaitStatus
	for {
		if _, err = unix.Wait4(tid, &status, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil || !status.Stopped() {
		return nil, fmt.Errorf("wait until it stops: %#x, %w", status, err)
	}
	for {
		filter := make([]unix.SockFilter, 4096) // the most that there can be
		n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(tid), uintptr(len(filters)),
			uintptr(unsafe.Pointer(&filter[0])), 0, 0)
		if errno == unix.ENOENT || errno == unix.EINVAL && len(filters) == 0 { // no more, or none
			return filters, nil
		}
		if errno != 0 {
			return nil, fmt.Errorf("filter %d: %w", len(filters), errno)
		}
		filters = append(filters, filter[:n])
	}
}

func ptrace(request, tid int, addr uintptr, data unsafe.Pointer) error {
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, uintptr(data), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// refused says if one of the filters does not let a system call through whose
// arguments are all 0.
func refused(filters [][]unix.SockFilter, nr uint32) bool {
	return slices.ContainsFunc(filters, func(f []unix.SockFilter) bool {
		action, ok := verdict(f, nr)
		return ok && action != unix.SECCOMP_RET_ALLOW && action != unix.SECCOMP_RET_LOG
	})
}

// verdict runs a filter, in classic BPF, on a system call.
func verdict(filter []unix.SockFilter, nr uint32) (action uint32, ok bool) {
	var a, x uint32
	var mem [16]uint32
	for pc := 0; pc < len(filter); pc++ {
		i := filter[pc]
		operand := i.K
		if i.Code&unix.BPF_X != 0 {
			operand = x
		}
		jump := func(yes bool) {
			if yes {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS: // of struct seccomp_data
			switch i.K {
			case 0:
				a = nr
			case 4:
				a = unix.AUDIT_ARCH_X86_64
			default: // instruction pointer, arguments
				a = 0
			}
		case unix.BPF_LD | unix.BPF_IMM:
			a = i.K
		case unix.BPF_LDX | unix.BPF_IMM:
			x = i.K
		case unix.BPF_LD | unix.BPF_MEM:
			a = mem[i.K%16]
		case unix.BPF_LDX | unix.BPF_MEM:
			x = mem[i.K%16]
		case unix.BPF_ST:
			mem[i.K%16] = a
		case unix.BPF_STX:
			mem[i.K%16] = x
		case unix.BPF_MISC | unix.BPF_TAX:
			x = a
		case unix.BPF_MISC | unix.BPF_TXA:
			a = x
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, unix.BPF_ALU | unix.BPF_AND | unix.BPF_X:
			a &= operand
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_X:
			jump(a == operand)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGT | unix.BPF_X:
			jump(a > operand)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_X:
			jump(a >= operand)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_X:
			jump(a&operand != 0)
		case unix.BPF_RET | unix.BPF_K:
			return i.K, true
		case unix.BPF_RET | unix.BPF_A:
			return a, true
		default: // nothing that seccomp filters are made of
			return 0, false
		}
	}
	return 0, false
}

// An empty filter, such as an unofficial build has, refuses nothing.
func TestRefused(t *testing.T) {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	end := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	const allow, trap = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_TRAP
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	for name, c := range map[string]struct {
		filter []unix.SockFilter
		want   bool
	}{
		"none":        {nil, false},
		"empty":       {[]unix.SockFilter{load(4), equal(arch, 1, 0), end(unix.SECCOMP_RET_KILL), end(allow)}, false},
		"logs":        {[]unix.SockFilter{end(unix.SECCOMP_RET_LOG)}, false},
		"this one":    {[]unix.SockFilter{load(0), equal(unix.SYS_EXECVE, 0, 1), end(trap), end(allow)}, true},
		"another":     {[]unix.SockFilter{load(0), equal(unix.SYS_PTRACE, 0, 1), end(trap), end(allow)}, false},
		"all but one": {[]unix.SockFilter{load(0), equal(unix.SYS_CLOSE, 0, 1), end(allow), end(trap)}, true},
		"error":       {[]unix.SockFilter{end(unix.SECCOMP_RET_ERRNO | 1)}, true},
	} {
		if got := refused([][]unix.SockFilter{c.filter}, unix.SYS_EXECVE); got != c.want {
			t.Errorf("%s: refused is %v", name, got)
		}
	}
}
