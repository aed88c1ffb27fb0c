package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
)

// rootDir is where runsc keeps the state of the one sandbox in dir.
func rootDir(dir string) string { return filepath.Join(dir, "runsc") }

// Destroy implements sandbox.Sandbox.
func (s *instance) Destroy(ctx context.Context) error {
	// First without the lock: a Start that hangs ends when its process does.
	group, err := cgroup.Load(s.spec.Cgroup)
	if err == nil {
		err = group.Kill(ctx)
	}
	if err != nil {
		return fmt.Errorf("destroy gVisor sandbox %s: %w", s.spec.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = true // never again
	if s.watched {
		select { // it reads the group's counters
		case <-s.life.Done():
		case <-ctx.Done():
			return fmt.Errorf("destroy gVisor sandbox %s: %w", s.spec.ID, context.Cause(ctx))
		}
	}
	s.finish(sandbox.Exit{
		Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL),
		Reason: "the sandbox was destroyed before it was started", At: time.Now(),
	})
	if s.launcher != nil {
		s.launcher.close(ctx)
		s.launcher = nil
	}
	return reap(ctx, s.spec.State())
}

// Reap implements sandbox.Driver. All processes of a sandbox are in its
// cgroup, but for a launcher that has not begun its work; that one ends with
// its owner. There are no mounts outside of the processes' own namespaces.
func (*Driver) Reap(ctx context.Context, state sandbox.State) error { return reap(ctx, state) }

func reap(ctx context.Context, state sandbox.State) error {
	group, err := cgroup.Load(state.Cgroup)
	if err != nil {
		return fmt.Errorf("destroy gVisor sandbox %s: %w", state.ID, err)
	}
	if err := group.Kill(ctx); err != nil {
		return fmt.Errorf("destroy gVisor sandbox %s: %w", state.ID, err)
	}
	errs := []error{group.Delete(ctx)}
	for _, name := range files {
		errs = append(errs, os.RemoveAll(filepath.Join(state.Dir, name)))
	}
	// Where runsc puts the control socket if the path in Dir is too long.
	for _, dir := range []string{"/var/run", "/run", "/tmp"} {
		err := os.Remove(filepath.Join(dir, "runsc-"+state.ID+".sock"))
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("destroy gVisor sandbox %s: %w", state.ID, err)
	}
	return nil
}

// files are those that the driver makes in Spec.Dir.
var files = []string{"runsc", "config.json", "etc", "upper.tar", "launch.log"}
