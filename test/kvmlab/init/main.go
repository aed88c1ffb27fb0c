// Command init is PID 1 of the KVM lab's machine: it loads what KVM needs, runs
// one job with its output on the console, and ends the
// machine.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/test/kvmlab/lab"
)

// runJobs is the argument of the child that runs the job, so that PID 1 can
// do nothing but wait for whatever dies.
const runJobs = "run-jobs"

func main() {
	if len(os.Args) == 2 && os.Args[1] == runJobs {
		if err := jobs(); err != nil {
			fmt.Println("kvmlab: ", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is the first process of the KVM lab's machine; it does nothing elsewhere")
		os.Exit(2)
	}
	if err := boot(); err != nil {
		fmt.Println("kvmlab: ", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func mountAll(list ...mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// boot makes the packed root, with a writable layer, the root of everything,
// and runs the jobs' runner to its end.
func boot() error {
	if err := mountAll(mount{"dev", "/dev", "devtmpfs", 0, ""}, mount{"proc", "/proc", "proc", 0, ""}); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := mountAll(
		mount{"/dev/vda", "/lower", "erofs", unix.MS_RDONLY, ""},
		mount{"over", "/over", "tmpfs", 0, "mode=0755"},
	); err != nil {
		return err
	}
	for _, d := range []string{"/over/upper", "/over/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := mountAll(mount{"root", "/newroot", "overlay", 0, "lowerdir=/lower,upperdir=/over/upper,workdir=/over/work"}); err != nil {
		return err
	}
	for _, d := range []string{"/dev", "/proc"} {
		if err := os.MkdirAll("/newroot"+d, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(d, "/newroot"+d, "", unix.MS_MOVE, ""); err != nil {
			return err
		}
	}
	if err := os.Chdir("/newroot"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := errors.Join(unix.Chroot("."), os.Chdir("/")); err != nil {
		return err
	}
	if err := mountAll(
		mount{"sys", "/sys", "sysfs", 0, ""},
		mount{"cgroup", "/sys/fs/cgroup", "cgroup2", 0, ""},
		mount{"/dev/vdb", "/tmp", "ext4", 0, ""},
		mount{"run", "/run", "tmpfs", 0, "mode=0755"},
		mount{"shm", "/dev/shm", "tmpfs", 0, "mode=1777"},
		mount{"pts", "/dev/pts", "devpts", 0, "ptmxmode=0666"},
	); err != nil {
		return err
	}
	return reapUntilDone()
}

func reapUntilDone() error {
	runner, err := os.StartProcess("/lab/bin/init", []string{"init", runJobs}, &os.ProcAttr{
		Env: []string{"PATH=" + os.Getenv("PATH")}, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == runner.Pid:
			return nil
		}
	}
}

// loadModules loads what the first file system was packed with.
func loadModules() error {
	b, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(b)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}

func jobs() error {
	nonce, err := parameter(lab.NonceParam)
	if err != nil {
		return err
	}
	name, err := parameter(lab.JobParam)
	if err != nil {
		return err
	}
	say := func(m lab.Mark) { fmt.Printf("\n%s\n", m.Line(nonce)) }
	b, err := os.ReadFile(lab.JobsFile)
	if err != nil {
		return err
	}
	var list []lab.Job
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("%s: %w", lab.JobsFile, err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	say(lab.Mark{Kind: lab.MarkUp})
	// A job may be silent for long; a machine that hangs is silent for good.
	tick := time.NewTicker(lab.TickSeconds * time.Second)
	defer tick.Stop()
	go func() {
		for range tick.C {
			say(lab.Mark{Kind: lab.MarkTick})
		}
	}()
	for _, j := range list {
		if j.Name != name {
			continue
		}
		code, note, err := run(j)
		if err != nil {
			fmt.Printf("kvmlab: job %s: %v\n", j.Name, err)
		}
		say(lab.Mark{Kind: lab.MarkExit, Job: j.Name, Code: code, Note: note})
	}
	say(lab.Mark{Kind: lab.MarkEnd})
	return nil
}

// kvmGroup owns /dev/kvm; any number does that is not root's.
const kvmGroup = 36

// outputDelay is for what a job has left behind and still writes.
const outputDelay = 10 * time.Second

// run runs a job to its end; the note says what its tests did.
func run(j lab.Job) (code int, note string, err error) {
	for _, m := range j.Modules {
		if out, err := exec.Command("/sbin/modprobe", m).CombinedOutput(); err != nil { //nolint:noctx // the machine has a deadline
			return 1, "", fmt.Errorf("modprobe %s: %w: %s", m, err, out)
		}
	}
	// As udev does.
	if err := errors.Join(os.Chown("/dev/kvm", 0, kvmGroup), os.Chmod("/dev/kvm", 0o660)); err != nil {
		return 1, "", err
	}
	dir := filepath.Join("/tmp", j.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 1, "", err
	}
	cmd := exec.Command(j.Args[0], j.Args[1:]...) //nolint:noctx // the machine has a deadline
	cmd.Dir, cmd.Env = dir, j.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if !j.Tests {
		code, err := ended(cmd.Run())
		return code, fmt.Sprint("exit code ", code), err
	}
	// What it says is read here: on the console the kernel speaks, too.
	results := lab.NewResults(os.Stdout)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = results, results, outputDelay
	if code, err = ended(cmd.Run()); code == 0 {
		if err = results.Check(j.Want); err != nil {
			code = 1
		}
	}
	return code, results.String(), err
}

// ended is the exit code of a program that has been run.
func ended(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil // killed by a signal is -1
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // a socket that was never written to
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}

// parameter is the value of a parameter on the kernel's command line.
func parameter(name string) (string, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	for _, w := range strings.Fields(string(b)) {
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			return v, nil
		}
	}
	return "", fmt.Errorf("the kernel command line lacks %s", name)
}
