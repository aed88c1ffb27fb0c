package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
)

// cycles are restores and kills of one function, one after the other.
type cycles struct {
	driver        string
	fn            *function
	n             int
	all           []time.Duration // restore to first response
	kill          []time.Duration
	before, after inventory
}

// part is how many cycles at both ends are compared.
func (c *cycles) part() int { return min(100, max(1, c.n/4)) }

// inventory is what a run holds of the machine.
type inventory struct {
	processes, mounts, namespaces, cgroups, fds, files, goroutines, threads int
	rss                                                                     int64
}

func measureCycles(ctx context.Context, w *world, d sandbox.Driver, fn *function, n int) (c *cycles, err error) {
	image, remove, err := aSnapshot(ctx, w, d, fn)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	c = &cycles{driver: d.Name(), fn: fn, n: n}
	r := sandbox.Restore{Image: image}
	warm := min(20, n) // so that pools and the heap have their size
	for i := range warm + n {
		if i == warm {
			if c.before, err = w.takeInventory(ctx); err != nil {
				return c, err
			}
		}
		took, killed, err := oneCycle(ctx, w, d, fn, r)
		if err != nil {
			return c, fmt.Errorf("cycle %d: %w", i, err)
		}
		if i >= warm {
			c.all, c.kill = append(c.all, took), append(c.kill, killed)
		}
	}
	c.after, err = w.takeInventory(ctx)
	return c, err
}

func oneCycle(ctx context.Context, w *world, d sandbox.Driver, fn *function, r sandbox.Restore) (took, killed time.Duration, err error) {
	b, err := w.newBox(ctx, d, fn)
	if err != nil {
		return 0, 0, err
	}
	b.unweighed = true
	err = b.restore(ctx, r)
	began := time.Now()
	err = errors.Join(err, b.destroy(ctx))
	return b.t.total(), time.Since(began), err
}

// takeInventory waits until the network's pools are full again and nothing
// changes any more, then counts. It counts what is ours by exact names.
func (w *world) takeInventory(ctx context.Context) (inventory, error) {
	runtime.GC()
	debug.FreeOSMemory()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var last inventory
	for same := 0; same < 4; {
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return last, ctx.Err()
		}
		now, err := w.count()
		if err != nil {
			return now, err
		}
		rss := now.rss
		now.rss = 0
		if now == last {
			same++
		} else {
			same = 0
		}
		last = now
		if same == 4 {
			last.rss = rss
		}
	}
	return last, nil
}

func (w *world) count() (v inventory, err error) {
	if v.processes, v.namespaces, err = w.countProcesses(); err != nil {
		return v, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return v, err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], w.dir+"/") {
			v.mounts++
		}
	}
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/" + w.parent)
	if err != nil {
		return v, err
	}
	for _, dir := range append(hierarchies, "/sys/fs/cgroup/"+w.parent) {
		err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				v.cgroups++
			}
			return nil // what vanishes meanwhile is not there
		})
		if err != nil {
			return v, err
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return v, err
	}
	v.fds = len(fds)
	err = filepath.WalkDir(w.dir, func(_ string, _ fs.DirEntry, err error) error {
		if err == nil {
			v.files++
		}
		return nil
	})
	if err != nil {
		return v, err
	}
	v.goroutines = runtime.NumGoroutine()
	if v.threads, err = threads(); err != nil {
		return v, err
	}
	v.rss, err = procKB("/proc/self/status", "VmRSS")
	return v, err
}

// countProcesses counts the processes in our cgroups and below us, and the
// network namespaces that we hold mounted.
func (w *world) countProcesses() (processes, namespaces int, err error) {
	parent, err := cgroup.Load(w.parent)
	if err != nil {
		return 0, 0, err
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, err
	}
	self := fmt.Sprint(os.Getpid())
	for _, p := range all {
		if filepath.Base(p) == self {
			continue
		}
		group, err := os.ReadFile(p + "/cgroup")
		if err != nil {
			continue // it has just ended
		}
		stat, _ := os.ReadFile(p + "/stat")
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if parent.Contains(string(group)) || len(fields) > 1 && fields[1] == self { // a child, maybe a zombie
			processes++
		}
	}
	seen := map[uint64]bool{}
	err = filepath.WalkDir(filepath.Join(w.dir, "net"), func(path string, e fs.DirEntry, err error) error {
		var st unix.Statfs_t
		var id unix.Stat_t
		if err == nil && !e.IsDir() && unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC && unix.Stat(path, &id) == nil {
			seen[id.Ino] = true
		}
		return nil
	})
	return processes, len(seen), err
}

func threads() (int, error) {
	list, err := os.ReadDir("/proc/self/task")
	return len(list), err
}

// differences lists what is more after than before.
func (c *cycles) differences() []string {
	var out []string
	for _, x := range []struct {
		name          string
		before, after int
	}{
		{"processes", c.before.processes, c.after.processes}, {"mounts", c.before.mounts, c.after.mounts},
		{"network namespaces", c.before.namespaces, c.after.namespaces}, {"cgroups", c.before.cgroups, c.after.cgroups},
		{"descriptors", c.before.fds, c.after.fds}, {"files", c.before.files, c.after.files},
		{"goroutines", c.before.goroutines, c.after.goroutines},
	} {
		if x.after > x.before {
			out = append(out, fmt.Sprintf("%d %s more", x.after-x.before, x.name))
		}
	}
	return out
}
