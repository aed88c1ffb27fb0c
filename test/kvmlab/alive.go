package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// alive kills a machine that hangs: one that has said nothing while it used a
// certain time of the processor, or while it did not even want the processor,
// or for much longer than that. On a busy machine silence alone says nothing.
type alive struct {
	lines   atomic.Int64
	hung    atomic.Bool
	stop    chan struct{}
	stopped chan struct{}
}

const (
	aliveLook = 2 * time.Second
	// starved is how many times as long one may be silent that does not get
	// the processor.
	starved = 5
	// idle is the part of its silence that a machine runs, or waits for the
	// processor, if it has work: it has a heartbeat.
	idle = 0.1
	// clockTick is the unit of times in proc_pid_stat(5), the same on all of
	// Linux's architectures.
	clockTick = time.Second / 100
)

func watchAlive(p *os.Process, quiet time.Duration) *alive {
	a := &alive{stop: make(chan struct{}), stopped: make(chan struct{})}
	go func() {
		defer close(a.stopped)
		t := time.NewTicker(aliveLook)
		defer t.Stop()
		lines, since, used, wanted := int64(-1), time.Time{}, time.Duration(0), time.Duration(0)
		for {
			cpu := cpuTime(p.Pid)
			want, known := wantedTime(p.Pid)
			if n := a.lines.Load(); n != lines {
				lines, since, used, wanted = n, time.Now(), cpu, want
			}
			silent := time.Since(since)
			asleep := known && silent > quiet && float64(want-wanted) < idle*float64(silent)
			if cpu-used > quiet || silent > starved*quiet || asleep {
				a.hung.Store(true)
				_ = p.Kill()
				return
			}
			select {
			case <-t.C:
			case <-a.stop:
				return
			}
		}
	}()
	return a
}

// said notes a line of the machine.
func (a *alive) said() { a.lines.Add(1) }

// end ends the watch; hung says if the machine was killed.
func (a *alive) end() (hung bool) {
	close(a.stop)
	<-a.stopped
	return a.hung.Load()
}

// cpuTime is the processor time of a process so far, 0 if it is not known.
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// After the name, which may hold anything.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var user, system int64
	if len(f) < 13 {
		return 0
	}
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
		return 0
	}
	return time.Duration(user+system) * clockTick
}

// wantedTime is how long the threads of a process that are there have run so
// far, or have waited to run. Not all kernels know it.
func wantedTime(pid int) (sum time.Duration, known bool) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/schedstat", pid))
	if err != nil {
		return 0, false
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		var ran, waited time.Duration // nanoseconds
		if _, err := fmt.Sscan(string(b), &ran, &waited); err != nil {
			return 0, false
		}
		sum, known = sum+ran+waited, true
	}
	return sum, known
}
