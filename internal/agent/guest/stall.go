package guest

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup/stall"
)

// Pressure only gives the alarm: what the function got done says whether it
// stalls.
const (
	alarmWindow = "5000000" // microseconds
	alarmFull   = "1000000" // of the window
)

// watchStalls kills the function when it stalls, until its process has ended.
func (c *cgroup) watchStalls(ended <-chan struct{}) error {
	if u, err := stall.Read(c.dir); err != nil || u.Limit == 0 {
		return err
	}
	fd, err := unix.Open(filepath.Join(c.dir, "memory.pressure"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("memory pressure: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // removes the trigger
	if _, err := unix.Write(fd, []byte("full "+alarmFull+" "+alarmWindow+"\x00")); err != nil {
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
		if p[0].Revents&unix.POLLERR != 0 {
			return errors.New("memory pressure: the cgroup is gone")
		}
		before, err := stall.Read(c.dir)
		if err != nil {
			return err
		}
		select {
		case <-ended:
			return nil
		case <-time.After(stall.Time):
		}
		after, err := stall.Read(c.dir)
		if err != nil {
			return err
		}
		if after.StalledSince(before) {
			c.stalled.Store(true)
			return c.set("cgroup.kill", "1")
		}
	}
}
