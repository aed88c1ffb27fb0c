package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// openFiles bounds the monitor's descriptors: a few for each processor and
// device.
const openFiles = 512

// vmm is a Firecracker process in its jail.
type vmm struct {
	*microvm.Monitor
	api *fcapi.Client
}

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
	args := []string{
		"--id", l.id, "--exec-file", d.program.Path,
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
	cmd := exec.Command(d.jailer, args...) //nolint:noctx // it outlives ctx
	v := &vmm{Monitor: microvm.NewMonitor("the jailer", cmd)}
	cmd.Stdout = outW
	// The jailer becomes Firecracker: one process, with number 1 in a
	// namespace of its own, without the jailer's own fork for that.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: clone}
	err = j.withMounts(l.binds, cmd.Start)
	_ = outW.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the jailer: %w", err), out.Close())
	}
	placed := v.Follow(out, l.group)
	v.api = fcapi.New(func(ctx context.Context) (net.Conn, error) { return j.dial(ctx, v.Dead()) })
	_, err = v.api.Describe(ctx)
	if err != nil {
		select {
		case <-v.Dead():
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
	v.End()
	v.api.Close()
}
