package launcher_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox/qemu/launcher"
	"github.com/skep-dev/skep/internal/testenv"
)

// childEnv makes the test's program a child that does what it says.
const childEnv = "SKEP_LAUNCHER_CHILD"

func TestMain(m *testing.M) {
	switch what, arg, _ := strings.Cut(os.Getenv(childEnv), " "); what {
	case "":
		os.Exit(m.Run())
	case "huge":
		fmt.Println(hugeFlag())
	case "userfaultfd":
		fmt.Println(userfaultfd(), look(arg))
	case "file":
		b, err := os.ReadFile("/proc/self/fd/3")
		fmt.Println(string(b), err)
	}
}

// hugeFlag marks memory and says whether the kernel knows.
func hugeFlag() string {
	const size = 8 << 20
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = unix.Munmap(mem) }()
	if err := unix.Madvise(mem, unix.MADV_HUGEPAGE); err != nil {
		return err.Error()
	}
	// Others must get through, and fail as they do.
	if err := unix.Madvise(mem, 12345); !errors.Is(err, unix.EINVAL) {
		return fmt.Sprintf("unknown advice: %v", err)
	}
	if err := unix.Madvise(mem, unix.MADV_DONTNEED); err != nil {
		return err.Error()
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(maps)) {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && strings.Contains(flags, " hg") {
			return "huge"
		}
	}
	return "plain"
}

// userfaultfd says whether it can be had as QEMU does.
func userfaultfd() string {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return errno.Error()
	}
	_ = unix.Close(int(fd))
	return "ok"
}

// look tries to look into another process in three ways.
func look(pid string) string {
	var n int
	_, _ = fmt.Sscan(pid, &n)
	_, openErr := os.Open("/proc/" + pid + "/mem")
	attachErr := unix.PtraceAttach(n)
	buf := make([]byte, 8)
	_, readErr := unix.ProcessVMReadv(n, []unix.Iovec{{Base: &buf[0], Len: 8}}, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
	for _, err := range []error{openErr, attachErr, readErr} {
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
			return fmt.Sprintf("not kept out: %v, %v, %v", openErr, attachErr, readErr)
		}
	}
	return "kept out"
}

// start runs the test's program as a child.
func start(t *testing.T, what string, o launcher.Options, change func(*exec.Cmd)) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, []string{childEnv + "=" + what}
	if change != nil {
		change(cmd)
	}
	if err := launcher.Start(cmd, o); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return strings.TrimSpace(out.String())
}

func TestNoHugePages(t *testing.T) {
	testenv.File(t, "/sys/kernel/mm/transparent_hugepage/enabled", "the kernel has no transparent huge pages")
	if got := start(t, "huge", launcher.Options{}, nil); got != "huge" {
		t.Errorf("without the filter: %s", got)
	}
	if got := start(t, "huge", launcher.Options{NoHugePages: true}, nil); got != "plain" {
		t.Errorf("with the filter: %s", got)
	}
}

// The filter is on no thread of the parent, whatever their number.
func TestParentIsNotAffected(t *testing.T) {
	before := filters(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { start(t, "huge", launcher.Options{NoHugePages: true}, nil) })
	}
	wg.Wait()
	for n := range filters(t) {
		if !before[n] {
			t.Errorf("a thread has seccomp %s now", n)
		}
	}
	for range 16 {
		wg.Go(func() {
			if got := hugeFlag(); got != "huge" {
				t.Errorf("in the parent: %s", got)
			}
		})
	}
	wg.Wait()
}

// filters are the states of this process's threads, those apart that are about
// to end.
func filters(t *testing.T) map[string]bool {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, p := range tasks {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		var seccomp, nnp string
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "Seccomp"); ok {
				seccomp += strings.Join(strings.Fields(rest), " ") + " "
			}
			if rest, ok := strings.CutPrefix(line, "NoNewPrivs"); ok {
				nnp = strings.Join(strings.Fields(rest), " ")
			}
		}
		found[seccomp+nnp] = true
	}
	return found
}

// An ordinary user gets userfaultfd, and can look into nobody, not even into
// processes of its own that are outside.
func TestUserfaultfd(t *testing.T) {
	testenv.Root(t)
	const nobody = 65534
	victim := exec.Command("sleep", "60")
	victim.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = victim.Process.Kill()
		_ = victim.Wait()
	})
	for _, pid := range []int{victim.Process.Pid, os.Getpid()} {
		got := start(t, fmt.Sprintf("userfaultfd %d", pid), launcher.Options{Userfaultfd: true}, func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		})
		if got != "ok kept out" {
			t.Error(got)
		}
	}
}

func TestPdeathsigIsRefused(t *testing.T) {
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := launcher.Start(cmd, launcher.Options{}); err == nil {
		_ = cmd.Wait()
		t.Error("it was accepted")
	}
}

func TestInheritsDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := start(t, "file", launcher.Options{NoHugePages: true, Userfaultfd: true}, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} })
	if got != "content <nil>" {
		t.Error(got)
	}
}

func BenchmarkStart(b *testing.B) {
	for name, start := range map[string]func(*exec.Cmd) error{
		"plain": (*exec.Cmd).Start,
		"launcher": func(c *exec.Cmd) error {
			return launcher.Start(c, launcher.Options{NoHugePages: true, Userfaultfd: true})
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				cmd := exec.Command("/bin/true")
				if err := start(cmd); err != nil {
					b.Fatal(err)
				}
				_ = cmd.Wait()
			}
		})
	}
}
