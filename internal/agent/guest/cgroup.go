package guest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup holds everything of the function's, so that the kernel kills the
// function and not the machine when memory runs out. (PID 1 itself is never
// chosen.)
type cgroup struct {
	dir string
	f   *os.File
	// stalled: the function was killed for making no progress.
	stalled atomic.Bool
	freezer int  // descriptor of cgroup.freeze
	events  int  // descriptor of cgroup.events
	frozen  bool // the owner guards it
}

func makeCgroup(memoryBytes uint64) (*cgroup, error) {
	if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+memory +pids"), 0); err != nil {
		return nil, fmt.Errorf("the guest kernel's cgroup controllers: %w", err)
	}
	if err := keepLittleFree(); err != nil {
		return nil, err
	}
	c := &cgroup{dir: filepath.Join(cgroupRoot, "function")}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, err
	}
	if memoryBytes > 0 {
		if err := c.set("memory.max", strconv.FormatUint(memoryBytes, 10)); err != nil {
			return nil, err
		}
	}
	// A function that has lost one of its processes is of no use.
	if err := c.set("memory.oom.group", "1"); err != nil {
		return nil, err
	}
	var err error
	if c.f, err = os.OpenFile(c.dir, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	if c.freezer, err = unix.Open(filepath.Join(c.dir, "cgroup.freeze"), unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("cgroup: freezer: %w", err)
	}
	if c.events, err = unix.Open(filepath.Join(c.dir, "cgroup.events"), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("cgroup: events: %w", err)
	}
	return c, nil
}

// freezeTimeout bounds the wait until all tasks stand still. One that waits in
// the kernel for a disk does not for a while; but no task comes out of the
// kernel any more from when it was asked to freeze.
const freezeTimeout = time.Second

// freeze stops all tasks.
func (c *cgroup) freeze() error {
	c.frozen = true
	if _, err := unix.Pwrite(c.freezer, []byte("1"), 0); err != nil {
		return fmt.Errorf("cgroup: freeze: %w", err)
	}
	b := make([]byte, 256)
	for deadline := time.Now().Add(freezeTimeout); ; {
		n, err := unix.Pread(c.events, b, 0)
		if err != nil {
			return fmt.Errorf("cgroup: events: %w", err)
		}
		left := time.Until(deadline)
		if left <= 0 || bytes.Contains(b[:n], []byte("frozen 1\n")) {
			return nil
		}
		// Until the file is another than what was read.
		events := []unix.PollFd{{Fd: int32(c.events), Events: unix.POLLPRI}} //nolint:gosec // a descriptor
		if _, err := unix.Poll(events, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cgroup: wait for events: %w", err)
		}
	}
}

// thaw has them go on, if they were stopped. A cgroup that is nil has no tasks.
func (c *cgroup) thaw() error {
	if c == nil || !c.frozen {
		return nil
	}
	if _, err := unix.Pwrite(c.freezer, []byte("0"), 0); err != nil {
		return fmt.Errorf("cgroup: thaw: %w", err)
	}
	c.frozen = false
	return nil
}

// keepLittleFree has the kernel keep no more memory back than it does by
// default, sqrt(16 x KiB of memory) KiB (Linux, mm/page_alloc.c). In machines of
// 512 MiB and more it keeps back 5 percent, for huge pages, and the machine
// would be out of memory before the function's cgroup is.
func keepLittleFree() error {
	const file = "/proc/sys/vm/min_free_kbytes"
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	kept, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("sysinfo: %w", err)
	}
	little := int(math.Sqrt(16 * float64(info.Totalram) * float64(info.Unit) / 1024))
	if kept <= little {
		return nil
	}
	return os.WriteFile(file, []byte(strconv.Itoa(little)), 0)
}

func (c *cgroup) fd() int { return int(c.f.Fd()) }

func (c *cgroup) set(file, value string) error {
	if err := os.WriteFile(filepath.Join(c.dir, file), []byte(value), 0); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// oomKills counts the processes killed for want of memory so far.
func (c *cgroup) oomKills() int64 {
	b, err := os.ReadFile(filepath.Join(c.dir, "memory.events"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}
