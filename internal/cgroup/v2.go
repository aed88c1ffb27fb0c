package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (g *Group) createV2(l Limits) error {
	if err := g.delegateV2(); err != nil {
		return err
	}
	dir := filepath.Join(g.h.unified, g.path)
	if err := mkdirAll(dir); err != nil {
		return err
	}
	if l.MemoryBytes > 0 {
		if err := write(filepath.Join(dir, "memory.max"), strconv.FormatInt(l.MemoryBytes, 10)); err != nil {
			return err
		}
		err := write(filepath.Join(dir, "memory.swap.max"), "0")
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no swap accounting
			return err
		}
	}
	if l.CPUMillis > 0 {
		v := fmt.Sprintf("%d %d", quota(l.CPUMillis).Microseconds(), cpuPeriod.Microseconds())
		if err := write(filepath.Join(dir, "cpu.max"), v); err != nil {
			return err
		}
	}
	if l.PIDs > 0 {
		if err := write(filepath.Join(dir, "pids.max"), strconv.FormatInt(l.PIDs, 10)); err != nil {
			return err
		}
	}
	return nil
}

// delegateV2 makes the groups above and turns their controllers on, from the
// root down: a controller can only be used where the group above has it.
func (g *Group) delegateV2() error {
	dir := g.h.unified
	names := strings.Split(g.path, "/")
	for i := range names {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
		if err != nil {
			return err
		}
		on := strings.Fields(string(b))
		for _, c := range []string{"memory", "cpu", "pids"} {
			if slices.Contains(on, c) {
				continue
			}
			if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c); err != nil {
				return fmt.Errorf("turn on the %s controller: %w", c, err)
			}
		}
		if i == len(names)-1 {
			return nil
		}
		dir = filepath.Join(dir, names[i])
		if err := mkdirAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) statsV2() (Stats, error) {
	var s Stats
	dir := filepath.Join(g.h.unified, g.path)
	usage, err := number(filepath.Join(dir, "memory.current"))
	if err != nil {
		return s, err
	}
	inactive, err := keyValue(filepath.Join(dir, "memory.stat"), "inactive_file")
	if err != nil {
		return s, err
	}
	s.MemoryBytes = max(usage-inactive, 0)
	usec, err := keyValue(filepath.Join(dir, "cpu.stat"), "usage_usec")
	if err != nil {
		return s, err
	}
	s.CPUTime = time.Duration(usec) * time.Microsecond
	if s.PIDs, err = number(filepath.Join(dir, "pids.current")); err != nil {
		return s, err
	}
	s.OOMKills, err = keyValue(filepath.Join(dir, "memory.events"), "oom_kill")
	return s, err
}

// mkdirAll is os.MkdirAll that outlives a parent being removed at the same
// time by somebody who found it empty.
func mkdirAll(dir string) error {
	var err error
	for range 10 {
		if err = os.MkdirAll(dir, 0o755); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}
