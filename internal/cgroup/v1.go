package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// v1Controllers are those a group made here uses.
var v1Controllers = []string{"memory", "cpu", "cpuacct", "pids", "freezer"}

// v1Dir is the group's directory in a controller's hierarchy, "" without one.
func (g *Group) v1Dir(controller string) string {
	if m := g.h.v1[controller]; m != "" {
		return filepath.Join(m, g.path)
	}
	return ""
}

// v1Dirs are the directories of a group made here, each once.
func (g *Group) v1Dirs() []string {
	var dirs []string
	seen := map[string]bool{}
	for _, c := range v1Controllers {
		if dir := g.v1Dir(c); dir != "" && !seen[dir] {
			seen[dir] = true
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func (g *Group) createV1(l Limits) error {
	for _, dir := range g.v1Dirs() {
		if err := mkdirAll(dir); err != nil {
			return err
		}
	}
	set := func(controller, file, value string) error {
		dir := g.v1Dir(controller)
		if dir == "" {
			return fmt.Errorf("the %s controller is not mounted", controller)
		}
		return write(filepath.Join(dir, file), value)
	}
	if l.MemoryBytes > 0 {
		// memory <= memory+swap must hold at every step.
		_ = set("memory", "memory.memsw.limit_in_bytes", "-1")
		v := strconv.FormatInt(l.MemoryBytes, 10)
		if err := set("memory", "memory.limit_in_bytes", v); err != nil {
			return err
		}
		err := set("memory", "memory.memsw.limit_in_bytes", v)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no swap accounting
			return err
		}
	}
	if l.CPUMillis > 0 {
		if err := set("cpu", "cpu.cfs_period_us", strconv.FormatInt(cpuPeriod.Microseconds(), 10)); err != nil {
			return err
		}
		if err := set("cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota(l.CPUMillis).Microseconds(), 10)); err != nil {
			return err
		}
	}
	if l.PIDs > 0 {
		if err := set("pids", "pids.max", strconv.FormatInt(l.PIDs, 10)); err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) statsV1() (Stats, error) {
	var s Stats
	mem := g.v1Dir("memory")
	usage, err := number(filepath.Join(mem, "memory.usage_in_bytes"))
	if err != nil {
		return s, err
	}
	inactive, err := keyValue(filepath.Join(mem, "memory.stat"), "total_inactive_file")
	if err != nil {
		return s, err
	}
	s.MemoryBytes = max(usage-inactive, 0)
	if dir := g.v1Dir("cpuacct"); dir != "" {
		ns, err := number(filepath.Join(dir, "cpuacct.usage"))
		if err != nil {
			return s, err
		}
		s.CPUTime = time.Duration(ns)
	}
	if dir := g.v1Dir("pids"); dir != "" {
		if s.PIDs, err = number(filepath.Join(dir, "pids.current")); err != nil {
			return s, err
		}
	}
	s.OOMKills, err = g.oomKillsV1()
	return s, err
}

// oomKillsV1 adds up the tree: v1 counts in the group that was at its limit
// or held the victim, not above it.
func (g *Group) oomKillsV1() (int64, error) {
	var sum int64
	root := g.v1Dir("memory")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if path != root && errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		n, err := keyValue(filepath.Join(path, "memory.oom_control"), "oom_kill")
		if err != nil && (path == root || !errors.Is(err, os.ErrNotExist)) {
			return err
		}
		sum += n
		return nil
	})
	return sum, err
}
