package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A function near its limit can live on without progress: the kernel throws
// pages of its program out, reads them again at once, and, as it does find
// pages to throw out, never calls that out of memory. The kernel does measure
// it: "full" pressure is the time in which every task of a cgroup waited for
// memory (Linux, Documentation/accounting/psi.rst). It leaves out what the
// kernel does to bring a page back, which on an emulated processor is most of
// the time: a function that has stopped shows 22 to 35 percent. So that much
// only gives the alarm, and what the function got done says whether it stalls.
const (
	alarmWindow = "5000000" // microseconds
	alarmFull   = "1000000" // of the window
	// stallTime is how long a function must stall.
	stallTime = 20 * time.Second
	// The limits of what stalled compares, in percent.
	nearLimit = 90 // least memory that cannot be thrown out, of the limit
	leastFull = 15 // least pressure, of the time
	leastBusy = 80 // least time that it ran or waited for memory
	mostUser  = 10 // most time that the program itself ran
)

// usage is what the function has used so far.
type usage struct {
	at   time.Time
	full time.Duration // waited for memory
	cpu  time.Duration // ran, in the kernel too
	user time.Duration // ran itself
	// Bytes: what cannot be thrown out, and the most that it may have.
	held, limit int64
}

// stalled says if nearly all the time from a to b went into pages that were
// thrown out, as there is no room for them.
func stalled(a, b usage) bool {
	elapsed := b.at.Sub(a.at)
	percent := func(d time.Duration) int64 { return int64(100 * d / elapsed) }
	return elapsed > 0 && a.nearLimit() && b.nearLimit() &&
		percent(b.full-a.full) >= leastFull &&
		percent(b.full-a.full+b.cpu-a.cpu) >= leastBusy &&
		percent(b.user-a.user) <= mostUser
}

func (u usage) nearLimit() bool { return u.held/nearLimit >= u.limit/100 }

// watchStalls kills the function when it stalls, until its process has ended.
func (c *cgroup) watchStalls(ended <-chan struct{}) error {
	if _, err := c.number("memory.max"); err != nil {
		return nil // "max": there is no limit
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
		before, err := c.usage()
		if err != nil {
			return err
		}
		select {
		case <-ended:
			return nil
		case <-time.After(stallTime):
		}
		after, err := c.usage()
		if err != nil {
			return err
		}
		if stalled(before, after) {
			c.stalled.Store(true)
			return c.set("cgroup.kill", "1")
		}
	}
}

func (c *cgroup) usage() (usage, error) {
	pressure, err1 := c.fields("memory.pressure")
	cpu, err2 := c.fields("cpu.stat")
	stat, err3 := c.fields("memory.stat")
	used, err4 := c.number("memory.current")
	limit, err5 := c.number("memory.max")
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return usage{}, fmt.Errorf("the function's use of memory: %w", err)
	}
	return usage{
		at:   time.Now(),
		full: time.Duration(pressure["full"]) * time.Microsecond,
		cpu:  time.Duration(cpu["usage_usec"]) * time.Microsecond,
		user: time.Duration(cpu["user_usec"]) * time.Microsecond,
		held: used - stat["inactive_file"] - stat["active_file"], limit: limit,
	}, nil
}

// fields reads a file with a name and a number on each line. Of pressure, the
// number is the total.
func (c *cgroup) fields(file string) (map[string]int64, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, file))
	if err != nil {
		return nil, err
	}
	fields := make(map[string]int64)
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, total, ok := strings.Cut(rest, "total="); ok {
			rest = total
		}
		if fields[name], err = strconv.ParseInt(rest, 10, 64); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return fields, nil
}

// number reads a file that holds one.
func (c *cgroup) number(file string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, file))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
