// Package cgroup limits, measures, kills and removes the processes of one
// sandbox, on cgroup v1 and v2 alike.
//
// It writes the kernel's files itself: what is needed is a few files per
// version, and it must also work on groups that a runtime (runc, runsc)
// made at the same path, in hierarchies this package would not use itself.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Limits of a group; zero means none.
type Limits struct {
	MemoryBytes int64 // memory; the same for memory and swap together where the kernel accounts for swap
	CPUMillis   int64 // CPU time per second; 1000 is one CPU
	PIDs        int64 // processes and threads
}

// Stats is what a group and all groups below it use.
type Stats struct {
	MemoryBytes int64         // without page cache that the kernel can drop at once
	CPUTime     time.Duration // user and system
	PIDs        int64
	OOMKills    int64
}

// Group is a cgroup: one directory on v2, one per hierarchy on v1.
type Group struct {
	path string
	h    *hierarchies
}

// cpuPeriod is the kernel's default for the CFS bandwidth period.
const cpuPeriod = 100 * time.Millisecond

// minQuota is the least CPU time per period that the kernel accepts.
const minQuota = time.Millisecond

// Create makes the group, and the groups above it, and sets its limits. The
// path is relative to the hierarchies' root. If the group exists its limits
// are replaced. On error nothing that was made is left behind, but for
// parents.
func Create(path string, l Limits) (*Group, error) {
	h, err := system()
	if err != nil {
		return nil, err
	}
	return create(h, path, l)
}

// Load returns the group at path, whoever made it. The group need not exist:
// then it has no processes, and deleting it does nothing.
func Load(path string) (*Group, error) {
	h, err := system()
	if err != nil {
		return nil, err
	}
	return load(h, path)
}

func load(h *hierarchies, path string) (*Group, error) {
	if !filepath.IsLocal(path) || filepath.Clean(path) != path || path == "." {
		return nil, fmt.Errorf("cgroup path: %q is not a clean relative path", path)
	}
	return &Group{path: path, h: h}, nil
}

func create(h *hierarchies, path string, l Limits) (*Group, error) {
	g, err := load(h, path)
	if err != nil {
		return nil, err
	}
	if l.MemoryBytes < 0 || l.CPUMillis < 0 || l.PIDs < 0 {
		return nil, fmt.Errorf("create cgroup %s: negative limit: %+v", path, l)
	}
	existed := g.Exists()
	if h.v2() {
		err = g.createV2(l)
	} else {
		err = g.createV1(l)
	}
	if err != nil {
		if !existed {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			err = errors.Join(err, g.Delete(ctx))
		}
		return nil, fmt.Errorf("create cgroup %s: %w", path, err)
	}
	return g, nil
}

// Path is the group's path, relative to the hierarchies' root.
func (g *Group) Path() string { return g.path }

// Exists says if the group exists in any hierarchy.
func (g *Group) Exists() bool { return len(g.dirs()) > 0 }

// Add moves a process, with all its threads, into the group. Children that
// it has already stay where they are.
func (g *Group) Add(pid int) error {
	if pid <= 0 { // 0 would move the caller
		return fmt.Errorf("add process to cgroup %s: %d is not a process ID", g.path, pid)
	}
	dirs := []string{filepath.Join(g.h.unified, g.path)}
	if !g.h.v2() {
		dirs = g.v1Dirs()
	}
	for _, dir := range dirs {
		if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("add process %d to cgroup %s: %w", pid, g.path, err)
		}
	}
	return nil
}

// OOMKills is the number of processes of the group, and of groups below it,
// that the kernel killed because of a memory limit. The count is lost when
// the group is deleted.
func (g *Group) OOMKills() (int64, error) {
	var n int64
	var err error
	if g.h.v2() {
		n, err = keyValue(filepath.Join(g.h.unified, g.path, "memory.events"), "oom_kill")
	} else {
		n, err = g.oomKillsV1()
	}
	if err != nil {
		return 0, fmt.Errorf("read OOM kills of cgroup %s: %w", g.path, err)
	}
	return n, nil
}

// Stats measures the group and all groups below it.
func (g *Group) Stats() (Stats, error) {
	var s Stats
	var err error
	if g.h.v2() {
		s, err = g.statsV2()
	} else {
		s, err = g.statsV1()
	}
	if err != nil {
		return Stats{}, fmt.Errorf("read statistics of cgroup %s: %w", g.path, err)
	}
	return s, nil
}

// quota is the CPU time per cpuPeriod for a limit.
func quota(millis int64) time.Duration {
	return max(cpuPeriod*time.Duration(millis)/1000, minQuota)
}

// dirs lists the directories of the group that exist, in all hierarchies.
func (g *Group) dirs() []string {
	var dirs []string
	for _, m := range g.h.mounts {
		dir := filepath.Join(m, g.path)
		if _, err := os.Lstat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// write writes a cgroup file, which must exist: that the kernel lacks one
// must not look like success.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(value); err != nil {
		f.Close()
		return fmt.Errorf("write %q: %w", value, err)
	}
	return f.Close()
}

// number reads a file that holds one number; "max" reads as -1.
func number(file string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return -1, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// keyValue reads one value of a file of "key value" lines.
func keyValue(file, key string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, ok, err := parseKeyValue(string(b), key)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	if !ok {
		return 0, fmt.Errorf("%s: %w: no line %q", file, fs.ErrNotExist, key)
	}
	return n, nil
}

func parseKeyValue(s, key string) (n int64, ok bool, err error) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == key {
			n, err = strconv.ParseInt(f[1], 10, 64)
			return n, err == nil, err
		}
	}
	return 0, false, nil
}
