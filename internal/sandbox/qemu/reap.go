package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Reap ends the machine with this state, if there is one. A machine has no
// files. Its process is in its cgroup, but for its first moments: so it is
// also looked for by its name.
func (d *Driver) Reap(ctx context.Context, s sandbox.State) error {
	if err := reap(ctx, s); err != nil {
		return fmt.Errorf("qemu: reap sandbox %s: %w", s.ID, err)
	}
	return nil
}

func reap(ctx context.Context, s sandbox.State) error {
	g, err := cgroup.Load(s.Cgroup)
	if err != nil {
		return err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		alive, err := killNamed(processName(s.ID))
		if err != nil {
			return err
		}
		if !alive {
			break
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
	return errors.Join(g.Kill(ctx), g.Delete(ctx))
}

// killNamed kills every process that has the name as an argument, and says if
// there was one.
func killNamed(name string) (bool, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	found := false
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() || !hasArgument(pid, name) {
			continue
		}
		// The number may be another's by now: look again with a hold on it.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		if hasArgument(pid, name) {
			found = true
			err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return found, fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return found, nil
}

// hasArgument says if a process, not a dead one, has an argument of this text.
func hasArgument(pid int, text string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && slices.Contains(strings.Split(string(b), "\x00"), text)
}
