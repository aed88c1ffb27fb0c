package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds Kill and Delete where the caller's context does not.
const patience = 30 * time.Second

// Procs lists the processes in the group and in all groups below it, sorted.
func (g *Group) Procs() ([]int, error) {
	var pids []int
	for _, root := range g.dirs() {
		err := walk(root, func(dir string) error {
			f, err := os.Open(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				return err
			}
			defer f.Close()
			sc := bufio.NewScanner(f)
			for sc.Scan() {
				// 0 is a process outside our PID namespace.
				if pid, err := strconv.Atoi(sc.Text()); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			if errors.Is(sc.Err(), unix.ENODEV) { // removed meanwhile
				return nil
			}
			return sc.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", g.path, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Kill kills every process in the group and in groups below it, and waits
// until none is left.
func (g *Group) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b := backoff{}
	for {
		pids, err := g.Procs()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if slices.Contains(pids, os.Getpid()) {
			return fmt.Errorf("kill cgroup %s: it holds this process itself", g.path)
		}
		if err := g.killOnce(); err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.path, err)
		}
		if err := b.wait(ctx); err != nil {
			return fmt.Errorf("kill cgroup %s: processes %v are still there: %w", g.path, pids, err)
		}
	}
}

func (g *Group) killOnce() error {
	if g.h.v2() {
		err := write(filepath.Join(g.h.unified, g.path, "cgroup.kill"), "1")
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Linux before 5.14. A frozen process cannot fork, and can be killed.
		_ = write(filepath.Join(g.h.unified, g.path, "cgroup.freeze"), "1")
	} else if dir := g.v1Dir("freezer"); dir != "" {
		// On v1 a frozen process keeps the signal until it thaws.
		_ = write(filepath.Join(dir, "freezer.state"), "FROZEN")
		defer func() {
			_ = walk(dir, func(d string) error {
				_ = write(filepath.Join(d, "freezer.state"), "THAWED")
				return nil
			})
		}()
	}
	pids, err := g.Procs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// Delete removes the group and all groups below it from all hierarchies. It
// waits for processes that are about to end, but kills none. A group that
// does not exist is no error.
func (g *Group) Delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b := backoff{}
	for {
		err := g.deleteOnce()
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("delete cgroup %s: %w", g.path, err)
		}
		if werr := b.wait(ctx); werr != nil {
			return fmt.Errorf("delete cgroup %s: %w", g.path, errors.Join(err, werr))
		}
	}
}

func (g *Group) deleteOnce() error {
	var errs []error
	for _, root := range g.dirs() {
		var dirs []string
		if err := walk(root, func(dir string) error { dirs = append(dirs, dir); return nil }); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
			}
		}
	}
	return errors.Join(errs...)
}

// DeleteIfEmpty removes the group where it has neither processes nor groups
// below it, and leaves it alone elsewhere. It is for the parent that all
// sandboxes of a node share.
func (g *Group) DeleteIfEmpty() error {
	for _, dir := range g.dirs() {
		err := unix.Rmdir(dir)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("delete cgroup %s: %w", g.path, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return nil
}

// walk calls fn for root and all directories below it, parents first. What
// vanishes meanwhile is skipped.
func walk(root string, fn func(dir string) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = fn(path)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
}

// backoff waits a little longer each time.
type backoff struct{ d time.Duration }

func (b *backoff) wait(ctx context.Context) error {
	b.d = min(max(2*b.d, time.Millisecond), 50*time.Millisecond)
	t := time.NewTimer(b.d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Contains says if a process is in the group or in one below it, by the text
// of its /proc/PID/cgroup.
func (g *Group) Contains(procCgroup string) bool {
	for line := range strings.Lines(procCgroup) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		_, path, ok := strings.Cut(rest, ":")
		if ok && (path == "/"+g.path || strings.HasPrefix(path, "/"+g.path+"/")) {
			return true
		}
	}
	return false
}
