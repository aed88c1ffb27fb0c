package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// remoteDelay is how far away the object store is: what each read waits.
	remoteDelay = time.Millisecond
	// remoteRate is what one read gets, bytes a second.
	remoteRate = 1 << 30
	// remoteRead is the most that one read can bring.
	remoteRead = mib
)

// far makes a folder appear at another place with each read of it as slow as
// from an object store, by FUSE. So every driver and mode can be tried with
// remote memory, whatever way it reads: by calls, by mappings, or ahead.
func far(dir, at string) (unmount func() error, err error) {
	if err := os.Mkdir(at, 0o755); err != nil {
		return nil, err
	}
	long := time.Hour
	server, err := fs.Mount(at, &farNode{path: dir}, &fs.Options{
		EntryTimeout: &long, AttrTimeout: &long,
		MountOptions: fuse.MountOptions{
			DirectMountStrict: true, AllowOther: true, FsName: "skep-bench", Name: "skep-bench",
			MaxReadAhead: remoteRead, MaxWrite: remoteRead, MaxBackground: 64,
		},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("FUSE: %w", err), os.Remove(at))
	}
	return func() error {
		if err := server.Unmount(); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
		server.Wait()
		return os.Remove(at)
	}, nil
}

// farNode is a file or folder that is far away.
type farNode struct {
	fs.Inode
	path string
}

var (
	_ fs.NodeLookuper  = (*farNode)(nil)
	_ fs.NodeGetattrer = (*farNode)(nil)
	_ fs.NodeReaddirer = (*farNode)(nil)
	_ fs.NodeOpener    = (*farNode)(nil)
)

func (n *farNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	path := filepath.Join(n.path, name)
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return nil, fs.ToErrno(err)
	}
	out.FromStat(&st)
	return n.NewInode(ctx, &farNode{path: path}, fs.StableAttr{Mode: st.Mode & syscall.S_IFMT, Ino: st.Ino}), 0
}

func (n *farNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Lstat(n.path, &st); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&st)
	return 0
}

func (n *farNode) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	return fs.NewLoopbackDirStream(n.path)
}

func (n *farNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	f, err := os.Open(n.path)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return &farFile{f}, fuse.FOPEN_KEEP_CACHE, 0
}

// farFile is an open file that is far away.
type farFile struct{ f *os.File }

var (
	_ fs.FileReader   = (*farFile)(nil)
	_ fs.FileLseeker  = (*farFile)(nil)
	_ fs.FileFsyncer  = (*farFile)(nil)
	_ fs.FileReleaser = (*farFile)(nil)
)

func (f *farFile) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := unix.Pread(int(f.f.Fd()), dest, off)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	select {
	case <-time.After(remoteDelay + time.Duration(float64(n)/remoteRate*float64(time.Second))):
	case <-ctx.Done():
		return nil, syscall.EINTR
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (f *farFile) Lseek(_ context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	n, err := unix.Seek(int(f.f.Fd()), int64(off), int(whence))
	return uint64(n), fs.ToErrno(err)
}

func (*farFile) Fsync(context.Context, uint32) syscall.Errno { return 0 }

func (f *farFile) Release(context.Context) syscall.Errno { return fs.ToErrno(f.f.Close()) }

// moveFar has all restores read their snapshots from far away.
func (s *subject) moveFar() (back func() error, err error) {
	at := s.dir + "-far"
	unmount, err := far(s.dir, at)
	if err != nil {
		return nil, err
	}
	there := func(path string) string { return at + strings.TrimPrefix(path, s.dir) }
	for _, x := range s.ways {
		i := &x.restore.Image
		dirs := make([]string, len(i.Dirs))
		for j := range dirs {
			dirs[j] = there(i.Dirs[j])
		}
		i.Dirs = dirs
		if i.WorkingSet != "" {
			i.WorkingSet = there(i.WorkingSet)
		}
	}
	return unmount, nil
}
