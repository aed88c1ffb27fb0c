package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Destroy implements [sandbox.Sandbox].
func (s *container) Destroy(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.spec.ID, err)
	}
	defer s.unlock()
	s.mu.Lock()
	s.destroyed = true
	if s.state == created {
		s.finish(sandbox.Exit{
			Code: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL),
			Reason: "destroyed before it was started", At: time.Now(),
		})
	}
	s.mu.Unlock()
	if err := s.kill(ctx); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.spec.ID, err)
	}
	if err := s.driver.clear(ctx, s.spec.State()); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.spec.ID, err)
	}
	return nil
}

// kill kills the function, and what it started, and waits for runc to see it.
func (s *container) kill(ctx context.Context) error {
	if err := s.group.Kill(ctx); err != nil {
		return err
	}
	// Without processes runc ends by itself, unless it was starting some.
	grace := time.NewTimer(2 * time.Second)
	defer grace.Stop()
	select {
	case <-s.done:
		return nil
	case <-grace.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	stop := s.stop
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for runc to end: %w", ctx.Err())
	}
	return s.group.Kill(ctx)
}

// Reap implements [sandbox.Driver].
func (d *Driver) Reap(ctx context.Context, st sandbox.State) error {
	if err := d.remove(ctx, st); err != nil {
		return fmt.Errorf("reap sandbox %s: %w", st.ID, err)
	}
	return nil
}

// remove removes a sandbox of which only the state is known.
func (d *Driver) remove(ctx context.Context, st sandbox.State) error {
	if !filepath.IsAbs(st.Dir) {
		return fmt.Errorf("state: dir: %q is not absolute", st.Dir)
	}
	// runc itself is not in the sandbox's cgroup. The first thing to die, or
	// it could put more into the cgroup.
	root := filepath.Join(st.Dir, stateDir)
	if err := poll(ctx, func() (bool, error) {
		pids, err := runcs(root)
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return len(pids) == 0, err
	}); err != nil {
		return fmt.Errorf("kill runc: %w", err)
	}
	return d.clear(ctx, st)
}

// clear removes all of a sandbox but runc.
func (d *Driver) clear(ctx context.Context, st sandbox.State) error {
	group, err := cgroup.Load(st.Cgroup)
	if err != nil {
		return err
	}
	if err := group.Kill(ctx); err != nil {
		return err // what lives uses the rest
	}
	// Whatever cannot be removed must not keep the others.
	errs := []error{group.Delete(ctx), unmountAll(ctx, st.Dir)}
	if errs[1] != nil {
		return errors.Join(errs...)
	}
	files := []string{lowerDir, writeDir, rootDir, stateDir, configFile, logFile, pidFile, etcDir}
	execs, err := filepath.Glob(filepath.Join(st.Dir, execPrefix+"*"))
	if err != nil {
		return err
	}
	for _, f := range execs {
		files = append(files, filepath.Base(f))
	}
	for _, f := range files {
		errs = append(errs, os.RemoveAll(filepath.Join(st.Dir, f)))
	}
	return errors.Join(errs...)
}

// runcs lists the processes of runc that work with this state directory,
// which is the value of their --root.
func runcs(root string) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		words := strings.Split(string(text), "\x00")
		if i := slices.Index(words, "--root"); i > 0 && i+1 < len(words) && words[i+1] == root {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(dir), &pid); err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}
