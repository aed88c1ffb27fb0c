package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/fd"
	"gvisor.dev/gvisor/pkg/fspath"
	gvcheckpoint "gvisor.dev/gvisor/pkg/sentry/checkpoint"
	"gvisor.dev/gvisor/pkg/sentry/fsimpl/erofs"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/seccheck"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	gvboot "gvisor.dev/gvisor/runsc/boot"
)

// gVisor's control socket has no place for calls of our own. They are made as
// sinks of its runtime monitoring: making the sink is the call. It always fails,
// with errDone in the best case, so that there is never a monitoring session:
// there can be but one, and to end it would end limitTasks, too.
const (
	releaseCommand = "skep-release" // see holdFirstRun
	mountCommand   = "skep-mount"
)

// errDone says that a command has been done.
var errDone = errors.New("skep: done")

// command has the sandbox at socket do a command, with a file unless that is
// nil.
func command(ctx context.Context, socket, name string, config map[string]any, file *os.File) error {
	args := &gvboot.CreateTraceSessionArgs{Config: seccheck.SessionConfig{
		Name: seccheck.DefaultSessionName, Sinks: []seccheck.SinkConfig{{Name: name, Config: config}},
	}}
	var files []*os.File
	if file != nil {
		files = append(files, file)
	}
	err := call(ctx, socket, gvboot.ContMgrCreateTraceSession, args, nil, files...)
	var remote *remoteError
	if errors.As(err, &remote) && strings.HasSuffix(remote.message, errDone.Error()) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%s: the sandbox has not done it", name)
	}
	return err
}

// handleCommand has this process, a sandbox, do a command when it is asked to.
func handleCommand(name string, do func(config map[string]any, f *fd.FD) error) {
	seccheck.RegisterSink(seccheck.SinkDesc{Name: name, New: func(config map[string]any, f *fd.FD) (seccheck.Sink, error) {
		if f != nil {
			defer f.Close() // unless it is released
		}
		if err := do(config, f); err != nil {
			return nil, err
		}
		return nil, errDone
	}})
}

// running is this process's kernel, from its first run on.
var running struct {
	kernel *kernel.Kernel
	ready  chan struct{} // closed when kernel is set
}

// handleMounts has this process, a sandbox, mount disks.
func handleMounts() {
	running.ready = make(chan struct{})
	handleCommand(mountCommand, func(config map[string]any, f *fd.FD) error {
		target, ok := config["target"].(string)
		if !ok || f == nil {
			return errors.New("no target, or no image")
		}
		select {
		case <-running.ready:
		case <-time.After(startTime):
			return errors.New("the function does not run yet")
		}
		if err := mountImage(running.kernel, f, target); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
		return nil
	})
}

// runs notes the kernel.
func runs(k *kernel.Kernel) {
	running.kernel = k
	close(running.ready)
}

// mountImage mounts an image, as gVisor's own call does. But it tells the file
// system who it is, so that after a restore it finds its image again, as one of
// the spec's mounts.
func mountImage(k *kernel.Kernel, image *fd.FD, target string) error {
	ctx := k.SupervisorContext()
	init := k.GlobalInit()
	if init == nil || init.Leader() == nil {
		return errors.New("the function has ended")
	}
	ns := init.Leader().MountNamespace()
	if ns == nil || !ns.TryIncRef() {
		return errors.New("the function has ended")
	}
	defer ns.DecRef(ctx)
	root := ns.Root(ctx)
	defer root.DecRef(ctx)
	pop := &vfs.PathOperation{Root: root, Start: root, Path: fspath.Parse(target), FollowFinalSymlink: true}
	_, err := k.VFS().MountAt(ctx, auth.NewRootCredentials(k.RootUserNamespace()), target, pop, erofs.Name, &vfs.MountOptions{
		ReadOnly: true,
		GetFilesystemOptions: vfs.GetFilesystemOptions{
			InternalMount: true,
			Data:          fmt.Sprintf("ifd=%d", image.Release()), // which closes it if this fails
			InternalData: erofs.InternalFilesystemOptions{UniqueID: gvcheckpoint.ResourceID{
				ContainerName: k.ContainerName(init.Leader().ContainerID()), Path: target,
			}},
		},
	})
	return err
}
