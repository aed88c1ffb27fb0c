package gvisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
	"gvisor.dev/gvisor/pkg/sentry/state/stateipc"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
)

// A sandbox that is restored can read the snapshot's files by itself, with
// 128 threads into a mapping of its memory. The launcher does better on its
// behalf, through the interface that gVisor has for checkpoints in an object
// store: it writes into the file that is the sandbox's memory, which needs
// neither page faults nor zeroing, and takes half the time.
const (
	pageReadBytes  = 512 << 10 // of one read
	pageReadRanges = 128       // places in the memory that one read may go to
	pageParallel   = 8         // reads in flight: what a page that is waited for may have to wait behind
	pageWorkers    = 4         // threads that copy, if there are as many CPUs
)

// pageServer serves the files of a snapshot to one sandbox.
type pageServer struct {
	dir  string // of the snapshot
	rpc  *urpc.Server
	open sync.WaitGroup // files that are not closed yet
}

// servePages serves the files in dir, and returns the client's end of the
// connection, which the caller closes when the sandbox has it.
func servePages(dir string) (*pageServer, *os.File, error) {
	s := &pageServer{dir: dir, rpc: urpc.NewServer()}
	files, err := stateipc.NewAsyncFileServer(s)
	if err != nil {
		return nil, nil, fmt.Errorf("serve the snapshot: %w", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("serve the snapshot: socket: %w", err)
	}
	client := os.NewFile(uintptr(fds[1]), "snapshot")
	sock, err := unet.NewSocket(fds[0])
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("serve the snapshot: socket: %w", err), unix.Close(fds[0]), client.Close())
	}
	s.rpc.Register(files)
	s.rpc.StartHandling(sock)
	return s, client, nil
}

// wait waits until the sandbox has closed all files that it opened.
func (s *pageServer) wait() { s.open.Wait() }

// Destroy implements stateipc.AsyncFileServerImpl.
func (*pageServer) Destroy() {}

// OpenWrite implements stateipc.AsyncFileServerImpl.
func (*pageServer) OpenWrite(path string) (stateio.AsyncWriter, error) {
	return nil, &os.PathError{Op: "create", Path: path, Err: unix.EROFS}
}

// OpenRead implements stateipc.AsyncFileServerImpl. The path is gVisor's name
// of one of the files.
func (s *pageServer) OpenRead(path string) (stateio.AsyncReader, error) {
	for _, f := range imageFiles {
		if f.gvisor == path {
			r, err := openPages(filepath.Join(s.dir, f.name))
			if err != nil {
				return nil, err
			}
			s.open.Add(1)
			r.done = s.open.Done
			return r, nil
		}
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: unix.ENOENT}
}

// pageReader reads one file. It implements stateio.AsyncReader.
type pageReader struct {
	src     []byte // mapping of the file
	done    func()
	mu      sync.Mutex // of dsts
	dsts    []int      // descriptors of files to read to
	pending []pageRead
}

// pageRead is one read from the file to ranges in another.
type pageRead struct {
	id     int
	off    int64
	dst    int // descriptor
	ranges []memmap.FileRange

	n   uint64 // bytes done
	err error
}

func openPages(path string) (*pageReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() == 0 {
		return nil, &os.PathError{Op: "read", Path: path, Err: io.ErrUnexpectedEOF}
	}
	src, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: path, Err: err}
	}
	return &pageReader{src: src}, nil
}

// Close implements stateio.AsyncReader.
func (r *pageReader) Close() error {
	defer r.done()
	errs := []error{unix.Munmap(r.src)}
	for _, fd := range r.dsts {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// MaxReadBytes implements stateio.AsyncReader.
func (*pageReader) MaxReadBytes() uint64 { return pageReadBytes }

// MaxRanges implements stateio.AsyncReader.
func (*pageReader) MaxRanges() int { return pageReadRanges }

// MaxParallel implements stateio.AsyncReader.
func (*pageReader) MaxParallel() int { return pageParallel }

// NeedRegisterDestinationFD implements stateio.AsyncReader.
func (*pageReader) NeedRegisterDestinationFD() bool { return true }

// RegisterDestinationFD implements stateio.AsyncReader.
func (r *pageReader) RegisterDestinationFD(fd int32, _ uint64, _ []stateio.ClientFileRangeSetting) (stateio.DestinationFile, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dsts = append(r.dsts, own)
	return own, nil
}

// AddRead implements stateio.AsyncReader.
func (r *pageReader) AddRead(id int, off int64, dst stateio.DestinationFile, fr memmap.FileRange, _ []byte) {
	r.pending = append(r.pending, pageRead{id: id, off: off, dst: dst.(int), ranges: []memmap.FileRange{fr}})
}

// AddReadv implements stateio.AsyncReader.
func (r *pageReader) AddReadv(id int, off int64, _ uint64, dst stateio.DestinationFile, frs []memmap.FileRange, _ []unix.Iovec) {
	r.pending = append(r.pending, pageRead{id: id, off: off, dst: dst.(int), ranges: frs})
}

// Wait implements stateio.AsyncReader. It does all reads that were added.
func (r *pageReader) Wait(cs []stateio.Completion, _ int) ([]stateio.Completion, error) {
	var next atomic.Int32
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(r.pending) {
				return
			}
			r.pending[i].copy(r.src)
		}
	}
	var workers sync.WaitGroup
	for range min(pageWorkers, runtime.NumCPU(), len(r.pending)) - 1 {
		workers.Go(work)
	}
	work()
	workers.Wait()
	for _, p := range r.pending {
		cs = append(cs, stateio.Completion{ID: p.id, N: p.n, Err: p.err})
	}
	r.pending = r.pending[:0]
	return cs, nil
}

// copy does the read. If the file has become shorter than its mapping, the
// kernel cannot read there, and write fails with EFAULT.
func (p *pageRead) copy(src []byte) {
	for _, fr := range p.ranges {
		for fr.Length() > 0 {
			if p.off < 0 || p.off >= int64(len(src)) {
				p.err = io.EOF
				return
			}
			from := src[p.off:min(p.off+int64(fr.Length()), int64(len(src)))] //nolint:gosec // at most pageReadBytes
			n, err := unix.Pwrite(p.dst, from, int64(fr.Start))               //nolint:gosec // checked by stateipc
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && n == 0 {
				err = io.ErrShortWrite
			}
			if err != nil {
				p.err = err
				return
			}
			p.off += int64(n)
			p.n += uint64(n)
			fr.Start += uint64(n)
		}
	}
}

var (
	_ stateio.AsyncReader          = (*pageReader)(nil)
	_ stateipc.AsyncFileServerImpl = (*pageServer)(nil)
)
