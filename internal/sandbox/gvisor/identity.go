package gvisor

import (
	"encoding/json"
	"fmt"
	"sync"

	gocontext "context"

	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/fspath"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/state"
	"gvisor.dev/gvisor/pkg/usermem"
)

// gVisor itself gives a restored sandbox its own host name (that of the spec),
// the right clock, and random numbers from the host. What it cannot know are
// the files that tell the function who it is. They are written when the kernel
// has been loaded, before any of the function's code runs on: each task is
// given work to do before it returns to that code. This needs a place where
// the tasks come by, and the platform is one: it is asked for a context for
// each task that is loaded or made.

// identity is what a restored sandbox is to have: the contents of files by
// their absolute paths.
type identity map[string]string

// giveIdentity has this process, which becomes a sandbox, give the identity in
// an annotation to the kernel that is going to be restored.
func giveIdentity(annotation string) error {
	var id identity
	if err := json.Unmarshal([]byte(annotation), &id); err != nil {
		return fmt.Errorf("annotation %s: %w", annotationIdentity, err)
	}
	c, err := platform.Lookup(platformName)
	if err != nil {
		return err
	}
	assume.id = id
	platform.Register(platformName, &identifying{c})
	return nil
}

// assume is what has to be done once in this process.
var assume struct {
	once sync.Once
	id   identity
}

// identifying makes platforms that see the tasks of a restored kernel.
type identifying struct{ platform.Constructor }

// New implements platform.Constructor.
func (c *identifying) New(opts platform.Options) (platform.Platform, error) {
	p, err := c.Constructor.New(opts)
	if err != nil {
		return nil, err
	}
	return &identifyingPlatform{p}, nil
}

type identifyingPlatform struct{ platform.Platform }

// NewContext implements platform.Platform.
func (p *identifyingPlatform) NewContext(ctx context.Context) platform.Context {
	if t := kernel.TaskFromContext(ctx); t != nil {
		t.RegisterWork(&identityWork{})
	}
	return p.Platform.NewContext(ctx)
}

// identityWork is a task's work before it returns to the function's code. All
// wait until the first has done it. It may become part of a snapshot.
type identityWork struct{ _ byte }

// TaskWork implements kernel.TaskWorker.
func (*identityWork) TaskWork(t *kernel.Task) {
	assume.once.Do(func() {
		k := t.Kernel()
		if err := assume.id.write(k); err != nil {
			log.Warningf("Killing the sandbox, which cannot be given its identity: %v", err)
			k.Kill(linux.WaitStatusTerminationSignal(linux.SIGKILL))
		}
	})
}

// write writes the files. One whose directory the function has not, or has
// something else for, is left out.
func (id identity) write(k *kernel.Kernel) error {
	ctx := k.SupervisorContext()
	init := k.GlobalInit()
	if init == nil || init.Leader() == nil {
		return nil
	}
	ns := init.Leader().MountNamespace()
	if ns == nil || !ns.TryIncRef() { // the function has ended
		return nil
	}
	defer ns.DecRef(ctx)
	root := ns.Root(ctx)
	defer root.DecRef(ctx)
	creds := auth.NewRootCredentials(k.RootUserNamespace())
	for path, content := range id {
		if err := writeFile(ctx, k.VFS(), creds, root, path, content); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

// writeFile makes a file, in place of whatever other than a directory there is:
// to open that could take for ever if it is a FIFO.
func writeFile(ctx context.Context, fs *vfs.VirtualFilesystem, creds *auth.Credentials, root vfs.VirtualDentry, path, content string) error {
	pop := &vfs.PathOperation{Root: root, Start: root, Path: fspath.Parse(path)}
	err := fs.UnlinkAt(ctx, creds, pop)
	switch {
	case linuxerr.Equals(linuxerr.ENOTDIR, err), linuxerr.Equals(linuxerr.EISDIR, err):
		return nil
	case err != nil && !linuxerr.Equals(linuxerr.ENOENT, err):
		return err
	}
	fd, err := fs.OpenAt(ctx, creds, pop, &vfs.OpenOptions{Flags: linux.O_WRONLY | linux.O_CREAT | linux.O_EXCL, Mode: 0o644})
	if linuxerr.Equals(linuxerr.ENOENT, err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer fd.DecRef(ctx)
	_, err = fd.Write(ctx, usermem.BytesIOSequence([]byte(content)), vfs.WriteOptions{})
	if linuxerr.Equals(linuxerr.ENOSPC, err) { // the function filled its disk
		return nil
	}
	return err
}

// StateTypeName implements state.Type.
func (*identityWork) StateTypeName() string { return "skep/internal/sandbox/gvisor.identityWork" }

// StateFields implements state.Type.
func (*identityWork) StateFields() []string { return nil }

// StateSave implements state.SaverLoader.
func (*identityWork) StateSave(state.Sink) {}

// StateLoad implements state.SaverLoader.
func (*identityWork) StateLoad(gocontext.Context, state.Source) {}

func init() { state.Register((*identityWork)(nil)) }
