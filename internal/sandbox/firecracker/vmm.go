package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// oomScoreAdj makes the host prefer sandboxes to the daemon when the whole
// machine is out of memory.
const oomScoreAdj = "500"

// openFiles bounds the monitor's descriptors: a few for each processor and
// device.
const openFiles = 512

// vmm is a Firecracker process in its jail.
type vmm struct {
	jail    *jail
	cmd     *exec.Cmd
	api     *fcapi.Client
	console *microvm.Console
	stderr  microvm.TailBuffer
	dead    chan struct{} // closed when the process has been waited for

	mu     sync.Mutex
	reason string // why we ended it, if we did
}

var _ microvm.Machine = (*vmm)(nil)

// launch is what a monitor is started with.
type launch struct {
	id        string
	netns     string // path; "" for none but its own, empty one
	fileBytes int64  // the largest file that it may write
	binds     []bind
	group     *cgroup.Group
}

// start starts a monitor without a machine. It takes over the jail only if it
// succeeds.
func (d *Driver) start(ctx context.Context, j *jail, l launch) (*vmm, error) {
	if err := j.targets(l.binds); err != nil {
		return nil, err
	}
	out, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	v := &vmm{jail: j, dead: make(chan struct{})}
	args := []string{
		"--id", l.id, "--exec-file", d.program,
		"--uid", fmt.Sprint(j.uid), "--gid", fmt.Sprint(j.uid),
		"--chroot-base-dir", d.baseOf(j),
		"--resource-limit", fmt.Sprintf("no-file=%d", openFiles),
		"--resource-limit", fmt.Sprintf("fsize=%d", l.fileBytes),
	}
	clone := uintptr(unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if l.netns != "" {
		args = append(args, "--netns", l.netns)
	} else {
		clone |= unix.CLONE_NEWNET
	}
	args = append(args, "--", "--api-sock", apiSocket, "--level", "Warning")
	v.cmd = exec.Command(d.jailer, args...) //nolint:noctx // it outlives ctx
	v.cmd.Dir = "/"
	v.cmd.Env = []string{}
	v.cmd.Stdout = outW
	v.cmd.Stderr = &v.stderr
	// The jailer becomes Firecracker: one process, with number 1 in a
	// namespace of its own, without the jailer's own fork for that.
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: clone}
	err = j.withMounts(l.binds, v.cmd.Start)
	_ = outW.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the jailer: %w", err), out.Close())
	}
	// Before it has taken any memory worth counting. A process that has ended
	// already says why below.
	placed := l.group.Add(v.cmd.Process.Pid)
	if placed == nil {
		placed = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", v.cmd.Process.Pid), []byte(oomScoreAdj), 0)
	}
	v.console = microvm.ReadConsole(out)
	go func() {
		_ = v.cmd.Wait() // how it ended, Explain says
		<-v.console.Done()
		close(v.dead)
	}()
	v.api = fcapi.New(func(ctx context.Context) (net.Conn, error) { return j.dial(ctx, v.dead) })
	_, err = v.api.Describe(ctx)
	if err != nil {
		select {
		case <-v.dead:
			err = v.Explain()
		default:
		}
	} else if placed != nil {
		err = placed
	}
	if err != nil {
		v.end()
		return nil, err
	}
	return v, nil
}

// end kills the process and waits for its end.
func (v *vmm) end() {
	v.Kill()
	<-v.dead
	v.api.Close()
}

// Dead is closed when the process has ended.
func (v *vmm) Dead() <-chan struct{} { return v.dead }

// Kill ends the process. It is safe at any time: os.Process knows if the
// number is still its own.
func (v *vmm) Kill() { _ = v.cmd.Process.Kill() }

// fail kills the machine for a reason that is not its own.
func (v *vmm) fail(reason error) {
	v.mu.Lock()
	if v.reason == "" {
		v.reason = reason.Error()
	}
	v.mu.Unlock()
	v.Kill()
}

// Explain says why the machine has ended, or does not answer.
func (v *vmm) Explain() error {
	v.mu.Lock()
	reason := v.reason
	v.mu.Unlock()
	parts := []string{"the virtual machine ended"}
	select {
	case <-v.dead:
		parts = append(parts, v.cmd.ProcessState.String())
	default:
		parts[0] = "the virtual machine does not answer"
	}
	if reason != "" {
		parts = append(parts, reason)
	}
	if s := v.stderr.String(); s != "" {
		parts = append(parts, "the jailer says: "+s)
	}
	if s := v.console.Tail(); s != "" {
		parts = append(parts, "its console says: "+s)
	}
	return errors.New(strings.Join(parts, "; "))
}

// awaitReady waits until the guest's agent listens.
func (v *vmm) awaitReady(ctx context.Context) error {
	select {
	case <-v.console.Ready():
		return nil
	case <-v.dead:
		select {
		case <-v.console.Ready(): // and ended at once, as a probe does
			return nil
		default:
		}
		return v.Explain()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ctx.Err(), v.Explain())
	}
}

// OutOfMemory says if the guest's kernel gave up for want of memory.
func (v *vmm) OutOfMemory() bool { return v.console.OutOfMemory() }
