package qemu

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

const pageSize = 4 << 10

// copyChunk is how much memory is looked at in one go.
const copyChunk = 1 << 20

var zeroPage = make([]byte, pageSize)

// newMemory makes the memory of a machine that boots. It is counted against
// the cgroup of whoever touches it first: QEMU's.
func newMemory(bytes int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("skep-guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest memory")
	if err := f.Truncate(bytes); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	return f, nil
}

// ram is the memory of a restored guest: a private mapping of an image's file
// in QEMU's process, that shows the file's content until it is written to.
type ram struct {
	pid   int
	start uintptr
	size  int64
}

// findRAM looks for the mapping of a file in a process.
func findRAM(pid int, f *os.File, size int64) (*ram, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, fmt.Errorf("QEMU's mappings: %w", err)
	}
	defer maps.Close() //nolint:errcheck // read only
	r, err := parseMaps(maps, unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino, size)
	if err != nil {
		return nil, err
	}
	r.pid = pid
	return r, nil
}

// parseMaps reads the format of /proc/PID/maps. The mapping may be in pieces,
// if parts of it are protected or advised differently.
func parseMaps(maps io.Reader, major, minor uint32, inode uint64, size int64) (*ram, error) {
	r := &ram{size: size}
	var found uint64
	sc := bufio.NewScanner(maps)
	for sc.Scan() {
		var start, end, offset, ino uint64
		var perms string
		var maj, mnr uint32
		n, _ := fmt.Sscanf(sc.Text(), "%x-%x %s %x %x:%x %d", &start, &end, &perms, &offset, &maj, &mnr, &ino)
		if n != 7 || ino != inode || maj != major || mnr != minor || !strings.HasSuffix(perms, "p") {
			continue
		}
		if found == 0 {
			r.start = uintptr(start - offset)
		}
		if offset != found || start-offset != uint64(r.start) {
			return nil, fmt.Errorf("QEMU maps the guest's memory in an unexpected way: %s", sc.Text())
		}
		found += end - start
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("QEMU's mappings: %w", err)
	}
	if found != uint64(size) {
		return nil, fmt.Errorf("QEMU maps %d bytes of the guest's memory, not %d", found, size)
	}
	return r, nil
}

// write changes the guest's memory. It is the guest's own from then on, and
// counted against its cgroup.
func (r *ram) write(p []byte, offset int64) error {
	return r.transfer(unix.ProcessVMWritev, p, offset)
}

func (r *ram) read(p []byte, offset int64) error {
	return r.transfer(unix.ProcessVMReadv, p, offset)
}

type vmCall func(pid int, local []unix.Iovec, remote []unix.RemoteIovec, flags uint) (int, error)

func (r *ram) transfer(call vmCall, p []byte, offset int64) error {
	for len(p) > 0 {
		local := []unix.Iovec{{Base: &p[0]}}
		local[0].SetLen(len(p))
		n, err := call(r.pid, local, []unix.RemoteIovec{{Base: r.start + uintptr(offset), Len: len(p)}}, 0)
		if err != nil {
			return fmt.Errorf("access guest memory at %#x: %w", offset, err)
		}
		if n == 0 {
			return fmt.Errorf("access guest memory at %#x: %w", offset, io.ErrUnexpectedEOF)
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// Bits of an entry of /proc/PID/pagemap (Linux, admin-guide/mm/pagemap.rst).
const (
	pmPresent = 1 << 63
	pmSwapped = 1 << 62
	pmFile    = 1 << 61 // of a file, or shared
)

// private tells for each page whether it is the process's own: written to
// since the restore.
func (r *ram) private() ([]bool, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", r.pid))
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	b := make([]byte, r.size/pageSize*8)
	if _, err := f.ReadAt(b, int64(r.start)/pageSize*8); err != nil {
		return nil, fmt.Errorf("QEMU's page map: %w", err)
	}
	own := make([]bool, r.size/pageSize)
	for i := range own {
		e := binary.NativeEndian.Uint64(b[8*i:])
		own[i] = e&(pmPresent|pmSwapped) != 0 && e&pmFile == 0
	}
	return own, nil
}

// apply writes the layers, newest first, over what the mapping shows.
func (r *ram) apply(layers []pager.Layer) error {
	buf := make([]byte, copyChunk)
	for i := len(layers) - 1; i >= 0; i-- {
		for _, e := range layers[i].Extents {
			for done := int64(0); done < e.Length; {
				p := buf[:min(copyChunk, e.Length-done)]
				if _, err := layers[i].Reader.ReadAt(p, e.FileOffset+done); err != nil {
					return fmt.Errorf("read a layer of the guest's memory: %w", err)
				}
				if err := r.write(p, e.Offset+done); err != nil {
					return err
				}
				done += int64(len(p))
			}
		}
	}
	return nil
}

// copyShared copies the memory of a machine that was booted: holes stay holes,
// and pages of zeros become some.
func copyShared(to, memory *os.File, size int64) error {
	l, err := pager.SparseLayer(memory)
	if err != nil {
		return err
	}
	w := sparseWriter{f: to}
	buf := make([]byte, copyChunk)
	for _, e := range l.Extents {
		for done := int64(0); done < e.Length; {
			p := buf[:min(copyChunk, e.Length-done)]
			if _, err := memory.ReadAt(p, e.FileOffset+done); err != nil {
				return fmt.Errorf("read guest memory: %w", err)
			}
			if err := w.write(p, e.Offset+done, func(page []byte, _ int64) bool { return !bytes.Equal(page, zeroPage) }); err != nil {
				return err
			}
			done += int64(len(p))
		}
	}
	return to.Truncate(size)
}

// copyChanged copies the pages that differ from the image's.
func (r *ram) copyChanged(to *os.File, image io.ReaderAt) error {
	w := sparseWriter{f: to}
	was := make([]byte, copyChunk)
	err := r.eachOwn(func(p []byte, offset int64) error {
		was := was[:len(p)]
		if _, err := image.ReadAt(was, offset); err != nil {
			return fmt.Errorf("read the image: %w", err)
		}
		// Also pages that have become zeros: as a hole they would show the
		// image's.
		return w.write(p, offset, func(page []byte, at int64) bool {
			at -= offset
			return !bytes.Equal(page, was[at:at+pageSize])
		})
	})
	if err != nil {
		return err
	}
	return to.Truncate(r.size)
}

// copyWhole copies all memory: the image's, and what has changed since.
func (r *ram) copyWhole(to *os.File, image pager.Source) error {
	own, err := r.private()
	if err != nil {
		return err
	}
	w := sparseWriter{f: to}
	buf := make([]byte, copyChunk)
	for offset := int64(0); offset < r.size; offset += copyChunk {
		p := buf[:min(copyChunk, r.size-offset)]
		mine := own[offset/pageSize : (offset+int64(len(p)))/pageSize]
		if err := r.chunk(p, offset, mine, image); err != nil {
			return err
		}
		if err := w.write(p, offset, func(page []byte, _ int64) bool { return !bytes.Equal(page, zeroPage) }); err != nil {
			return err
		}
	}
	return to.Truncate(r.size)
}

// chunk reads a piece of memory: from the image, as far as it is still there.
func (r *ram) chunk(p []byte, offset int64, own []bool, image pager.Source) error {
	if image.Zero(offset, int64(len(p))) {
		clear(p)
	} else if _, err := image.ReadAt(p, offset); err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	return eachRun(own, func(first, n int) error {
		at := first * pageSize
		return r.read(p[at:at+n*pageSize], offset+int64(at))
	})
}

// eachOwn calls f with the guest's own pages, in pieces of at most copyChunk.
func (r *ram) eachOwn(f func(p []byte, offset int64) error) error {
	own, err := r.private()
	if err != nil {
		return err
	}
	buf := make([]byte, copyChunk)
	return eachRun(own, func(first, n int) error {
		for n > 0 {
			p := buf[:min(n*pageSize, copyChunk)]
			if err := r.read(p, int64(first)*pageSize); err != nil {
				return err
			}
			if err := f(p, int64(first)*pageSize); err != nil {
				return err
			}
			first, n = first+len(p)/pageSize, n-len(p)/pageSize
		}
		return nil
	})
}

// eachRun calls f for every run of true.
func eachRun(set []bool, f func(first, n int) error) error {
	for i := 0; i < len(set); i++ {
		if !set[i] {
			continue
		}
		first := i
		for i < len(set) && set[i] {
			i++
		}
		if err := f(first, i-first); err != nil {
			return err
		}
	}
	return nil
}

// sparseWriter writes the pages that are wanted, as few calls as possible.
type sparseWriter struct{ f *os.File }

func (w sparseWriter) write(p []byte, offset int64, want func(page []byte, offset int64) bool) error {
	set := make([]bool, len(p)/pageSize)
	for i := range set {
		set[i] = want(p[i*pageSize:(i+1)*pageSize], offset+int64(i)*pageSize)
	}
	return eachRun(set, func(first, n int) error {
		_, err := w.f.WriteAt(p[first*pageSize:(first+n)*pageSize], offset+int64(first)*pageSize)
		return err
	})
}
