package qemu

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const pageSize = 4 << 10

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
