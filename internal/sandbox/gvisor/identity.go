package gvisor

import (
	"encoding/json"
	"fmt"

	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/errors"
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/fspath"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/usermem"
)

// gVisor itself gives a restored sandbox its own host name (that of the spec),
// the right clock, and random numbers from the host. What it cannot know are
// the files that tell the function who it is. They are written when the kernel
// has been loaded, before any of the function's code runs on, see firstRun.

// identity is what a restored sandbox is to have: the contents of files by
// their absolute paths.
type identity map[string]string

// parseIdentity reads an annotation, which is empty for a new sandbox.
func parseIdentity(annotation string) (identity, error) {
	var id identity
	if annotation == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(annotation), &id); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationIdentity, err)
	}
	return id, nil
}

// write writes the files, but for those that the function has no place for.
func (id identity) write(k *kernel.Kernel) error {
	if len(id) == 0 {
		return nil
	}
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
	if err := fs.UnlinkAt(ctx, creds, pop); err != nil && !linuxerr.Equals(linuxerr.ENOENT, err) {
		return unlessNoPlace(err)
	}
	fd, err := fs.OpenAt(ctx, creds, pop, &vfs.OpenOptions{Flags: linux.O_WRONLY | linux.O_CREAT | linux.O_EXCL, Mode: 0o644})
	if err != nil {
		return unlessNoPlace(err)
	}
	defer fd.DecRef(ctx)
	_, err = fd.Write(ctx, usermem.BytesIOSequence([]byte(content)), vfs.WriteOptions{})
	return unlessNoPlace(err)
}

// unlessNoPlace is err, or nil if the function has no place for a file.
func unlessNoPlace(err error) error {
	for _, e := range []*errors.Error{linuxerr.ENOENT, linuxerr.ENOTDIR, linuxerr.EISDIR, linuxerr.ELOOP, linuxerr.EROFS, linuxerr.ENOSPC} {
		if linuxerr.Equals(e, err) {
			return nil
		}
	}
	return err
}
