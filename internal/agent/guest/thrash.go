package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A function near its limit whose code and data are files can live on without
// progress: the kernel throws pages of its program out, reads them again at
// once, and, as it does find pages to throw out, never calls that out of
// memory. The kernel does measure it: "full" pressure is the time in which
// every task of a cgroup waited for memory (Linux, Documentation/accounting/psi.rst).
const (
	stallWindow = "5000000" // microseconds
	stallLimit  = "2500000" // of the window
	// nearLimit is the use, in percent of the limit, below which the function
	// is not the one that is short of memory.
	nearLimit = 90
)

// watchStalls kills the function when it stalls, until its process has ended.
func (c *cgroup) watchStalls(ended <-chan struct{}) error {
	fd, err := unix.Open(filepath.Join(c.dir, "memory.pressure"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("memory pressure: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // removes the trigger
	if _, err := unix.Write(fd, []byte("full "+stallLimit+" "+stallWindow+"\x00")); err != nil {
		return fmt.Errorf("memory pressure: %w", err)
	}
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
		_, err := unix.Poll(p, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("memory pressure: %w", err)
		}
		select {
		case <-ended:
			return nil
		default:
		}
		if p[0].Revents&unix.POLLERR != 0 {
			return errors.New("memory pressure: the cgroup is gone")
		}
		if p[0].Revents&unix.POLLPRI != 0 && c.nearLimit() {
			c.stalled.Store(true)
			if err := c.set("cgroup.kill", "1"); err != nil {
				return err
			}
		}
	}
}

// nearLimit says if the function has used up its memory, or nearly.
func (c *cgroup) nearLimit() bool {
	limit, err := c.number("memory.max")
	if err != nil {
		return false // "max": there is none
	}
	used, err := c.number("memory.current")
	return err == nil && used/nearLimit >= limit/100
}

// number reads a file that holds one.
func (c *cgroup) number(file string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, file))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
