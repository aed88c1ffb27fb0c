// Package stall tells whether a cgroup's processes have stopped making
// progress for want of memory.
//
// A function near its limit can live on without progress: the kernel throws
// pages of its program out, reads them again at once, and, as it does find
// pages to throw out, never calls that out of memory. Nothing but what the
// function got done says that it stalls.
package stall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Time is how long a function must stall.
const Time = 20 * time.Second

// The limits of what StalledSince compares, in percent.
const (
	nearLimit = 90 // least memory that cannot be thrown out, of the limit
	leastFull = 15 // least pressure, of the time
	leastBusy = 80 // least time that it ran or waited for memory
	mostUser  = 10 // most time that the program itself ran
)

// leastFaults is how many pages a second a function has read again, at least,
// where the kernel does not measure pressure.
const leastFaults = 20

// Usage is what a cgroup has used so far.
type Usage struct {
	At time.Time
	// Full is how long all its tasks waited for memory at the same time
	// (Linux, Documentation/accounting/psi.rst). It leaves out what the kernel
	// does to bring a page back, which on an emulated processor is most of the
	// time: a function that has stopped shows 22 to 70 percent. It is 0 where
	// the kernel does not count it: on cgroup v1, and without CONFIG_PSI.
	Full   time.Duration
	CPU    time.Duration // ran, in the kernel too
	User   time.Duration // ran its own code
	Faults int64         // pages that had to be read for it to go on
	// Held is what cannot be thrown out, Limit the most that it may have, in
	// bytes; 0 is no limit.
	Held, Limit int64
}

// StalledSince says if nearly all the time since a went into pages that were
// thrown out, as there is no room for them.
func (u Usage) StalledSince(a Usage) bool {
	elapsed := u.At.Sub(a.At)
	if elapsed <= 0 || !a.nearLimit() || !u.nearLimit() {
		return false
	}
	percent := func(d time.Duration) int64 { return int64(100 * d / elapsed) }
	full, cpu := u.Full-a.Full, u.CPU-a.CPU
	waits := percent(full) >= leastFull
	if u.Full == 0 {
		waits = float64(u.Faults-a.Faults) >= leastFaults*elapsed.Seconds()
	}
	return waits && percent(full+cpu) >= leastBusy && percent(u.User-a.User) <= mostUser
}

func (u Usage) nearLimit() bool { return u.Limit > 0 && u.Held/nearLimit >= u.Limit/100 }

// Read measures the cgroup, of version 2, in a directory.
func Read(dir string) (Usage, error) {
	limit, err := number(dir, "memory.max")
	if err != nil || limit == 0 {
		return Usage{}, err
	}
	pressure, err1 := fields(dir, "memory.pressure")
	if errors.Is(err1, fs.ErrNotExist) {
		err1 = nil
	}
	cpu, err2 := fields(dir, "cpu.stat")
	stat, err3 := fields(dir, "memory.stat")
	used, err4 := number(dir, "memory.current")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Usage{}, fmt.Errorf("use of memory: %w", err)
	}
	return Usage{
		At:     time.Now(),
		Full:   time.Duration(pressure["full"]) * time.Microsecond,
		CPU:    time.Duration(cpu["usage_usec"]) * time.Microsecond,
		User:   time.Duration(cpu["user_usec"]) * time.Microsecond,
		Faults: stat["pgmajfault"],
		Held:   used - stat["inactive_file"] - stat["active_file"], Limit: limit,
	}, nil
}

// tick is the unit of cpuacct.stat: USER_HZ is 100 everywhere.
const tick = 10 * time.Millisecond

// ReadV1 measures the cgroup of version 1 whose directories in the hierarchies
// of the controllers memory and cpuacct are these.
func ReadV1(memory, cpuacct string) (Usage, error) {
	stat, err1 := fields(memory, "memory.stat")
	used, err2 := number(memory, "memory.usage_in_bytes")
	limit, err3 := number(memory, "memory.limit_in_bytes")
	cpu, err4 := fields(cpuacct, "cpuacct.stat")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Usage{}, fmt.Errorf("use of memory: %w", err)
	}
	return Usage{
		At:     time.Now(),
		CPU:    time.Duration(cpu["user"]+cpu["system"]) * tick,
		User:   time.Duration(cpu["user"]) * tick,
		Faults: stat["total_pgmajfault"],
		Held:   used - stat["total_inactive_file"] - stat["total_active_file"], Limit: limit,
	}, nil
}

// fields reads a file with a name and a number on each line. Of pressure, the
// number is the total.
func fields(dir, file string) (map[string]int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
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

// number reads a file that holds one; "max" reads as 0.
func number(dir, file string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}
