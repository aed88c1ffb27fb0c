package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Each machine's monitor has a user of its own, so that one that is broken out
// of can do nothing to others. The range is one that nothing assigns, see
// systemd's "Users, Groups, UIDs and GIDs".
const (
	firstUID = 1879048192
	uidMask  = 0xffffff
)

// UID derives a sandbox's user, and group, from its random ID.
func UID(id string) uint32 {
	n, _ := strconv.ParseUint(id, 16, 64)
	return firstUID + uint32(n&uidMask)
}

// KillMatching kills every process whose arguments match, until there is none.
func KillMatching(ctx context.Context, match func(args []string) bool) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		found, err := killMatching(match)
		if err != nil || !found {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

func killMatching(match func([]string) bool) (bool, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	found := false
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() || !match(arguments(pid)) {
			continue
		}
		// The number may be another's by now: look again with a hold on it.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		if match(arguments(pid)) {
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

// arguments are a process's; a dead one has none.
func arguments(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	return strings.Split(string(b), "\x00")
}
