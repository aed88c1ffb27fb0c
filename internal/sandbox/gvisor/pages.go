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

	"github.com/skep-dev/skep/internal/sandbox"
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
	dirs []string // of the snapshot, the newest first
	rpc  *urpc.Server
	open sync.WaitGroup // files that are not closed yet
}

// servePages serves the files in folders, and returns the client's end of the
// connection, which the caller closes when the sandbox has it.
func servePages(dirs []string) (*pageServer, *os.File, error) {
	s := &pageServer{dirs: dirs, rpc: urpc.NewServer()}
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
			r, err := s.openPages(f.name)
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

// pageReader reads one file, or the memory. It implements stateio.AsyncReader.
type pageReader struct {
	src     [][]byte // mappings of the files
	memory  *memory  // nil if it is one file
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

// openPages opens one of a snapshot's files: the memory of all folders, the
// others of the first.
func (s *pageServer) openPages(name string) (_ *pageReader, err error) {
	r := &pageReader{}
	dirs := s.dirs[:1]
	if name == sandbox.FileMemory {
		if r.memory, err = openMemory(s.dirs); err != nil {
			return nil, err
		}
		defer r.memory.Close() //nolint:errcheck // read only; the mappings stay
		dirs = s.dirs
	}
	for _, dir := range dirs {
		b, err := mapFile(filepath.Join(dir, name))
		if err != nil {
			return nil, errors.Join(err, r.unmap())
		}
		r.src = append(r.src, b)
	}
	return r, nil
}

func mapFile(path string) ([]byte, error) {
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
	b, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: path, Err: err}
	}
	return b, nil
}

func (r *pageReader) unmap() error {
	var errs []error
	for _, b := range r.src {
		errs = append(errs, unix.Munmap(b))
	}
	return errors.Join(errs...)
}

// Close implements stateio.AsyncReader.
func (r *pageReader) Close() error {
	defer r.done()
	errs := []error{r.unmap()}
	for _, fd := range r.dsts {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// at is what there is from off on, nothing if there is nothing.
func (r *pageReader) at(off int64) []byte {
	file, end := 0, int64(len(r.src[0]))
	if r.memory != nil {
		file, end = r.memory.find(off)
	}
	if file < 0 || off < 0 || off >= int64(len(r.src[file])) {
		return nil
	}
	return r.src[file][off:min(end, int64(len(r.src[file])))]
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
			r.copy(&r.pending[i])
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

// copy does a read. gVisor says where in a file of pages one after the other it
// begins; of the memory, each page is where it belongs. If a file has become
// shorter than its mapping, the kernel cannot read there, and write fails with
// EFAULT.
func (r *pageReader) copy(p *pageRead) {
	for _, fr := range p.ranges {
		for fr.Length() > 0 {
			off := p.off
			if r.memory != nil {
				off = int64(fr.Start) //nolint:gosec // checked by stateipc
			}
			from := r.at(off)
			if len(from) == 0 {
				p.err = io.EOF
				return
			}
			from = from[:min(fr.Length(), uint64(len(from)))]
			n, err := unix.Pwrite(p.dst, from, int64(fr.Start)) //nolint:gosec // checked by stateipc
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
