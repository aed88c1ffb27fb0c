package gvisor

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	gvboot "gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// killTime bounds how long a process may take to die of SIGKILL.
const killTime = 10 * time.Second

// Exec implements sandbox.Sandbox.
func (s *instance) Exec(ctx context.Context, e sandbox.Exec) (sandbox.Exit, error) {
	exit, err := s.exec(ctx, e)
	if err != nil {
		return sandbox.Exit{}, fmt.Errorf("exec in gVisor sandbox %s: %w", s.spec.ID, err)
	}
	return exit, nil
}

func (s *instance) exec(ctx context.Context, e sandbox.Exec) (sandbox.Exit, error) {
	if err := s.running(); err != nil {
		return sandbox.Exit{}, err
	}
	args, err := s.execArgs(e.Process)
	if err != nil {
		return sandbox.Exit{}, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return sandbox.Exit{}, err
	}
	defer null.Close()
	stdio := map[int]*os.File{0: e.Stdin, 1: e.Stdout, 2: e.Stderr}
	for fd, f := range stdio {
		if f == nil {
			stdio[fd] = null
		}
	}
	args.FilePayload = control.NewFilePayload(stdio, nil)

	var pid int32
	if err := call(ctx, s.socket, gvboot.ContMgrExecuteAsync, args, &pid, args.Files...); err != nil {
		return sandbox.Exit{}, notRunning(err)
	}
	// Not with ctx: the process is to be waited for after its killing, too.
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
		defer cancel()
		_ = s.signal(ctx, unix.SIGKILL, pid) // it may have ended just now
	})
	defer stop()
	wait, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(killTime, cancel) })()
	var status uint32
	err = call(wait, s.socket, gvboot.ContMgrWaitPID, &gvboot.WaitPIDArgs{PID: pid, CID: s.spec.ID}, &status)
	if ctx.Err() != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	if err != nil {
		return sandbox.Exit{}, notRunning(err)
	}
	exit := sandbox.Exit{At: time.Now()}
	exit.Code, exit.Signal = decode(unix.WaitStatus(status))
	return exit, nil
}

// execArgs describes a process to the sandbox.
func (s *instance) execArgs(p sandbox.Process) (*control.ExecArgs, error) {
	image, closer, err := ocispec.OpenImage(s.spec.Rootfs)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	oci, err := ocispec.Process(&s.spec, image, p)
	if err != nil {
		return nil, err
	}
	caps, err := specutils.Capabilities(false, oci.Capabilities)
	if err != nil {
		return nil, fmt.Errorf("capabilities: %w", err)
	}
	args := &control.ExecArgs{
		ContainerID:      s.spec.ID,
		Argv:             oci.Args,
		Envv:             oci.Env,
		WorkingDirectory: oci.Cwd,
		KUID:             auth.KUID(oci.User.UID),
		KGID:             auth.KGID(oci.User.GID),
		Capabilities:     caps,
		NoNewPrivileges:  oci.NoNewPrivileges,
	}
	for _, g := range oci.User.AdditionalGids {
		args.ExtraKGIDs = append(args.ExtraKGIDs, auth.KGID(g))
	}
	return args, nil
}
