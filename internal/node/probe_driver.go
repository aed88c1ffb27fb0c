package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Probe proves that a driver works, with a sandbox that is recorded like any
// other: the process may be killed meanwhile.
func (n *Node) Probe(ctx context.Context, d sandbox.Driver) (err error) {
	id := sandbox.NewID()
	state := sandbox.State{ID: id, Dir: n.sandboxDir(id), Cgroup: path.Join(n.CgroupParent(), id)}
	if err := n.cfg.Journal.Put(ctx, kindSandbox, id, record{Driver: d.Name(), State: state}); err != nil {
		return err
	}
	if err := os.Mkdir(state.Dir, 0o700); err != nil {
		return fmt.Errorf("sandbox folder: %w", err)
	}
	err = d.Probe(ctx, state)
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if gone := removeDir(state.Dir); gone != nil {
		return errors.Join(err, gone) // stays recorded
	}
	return errors.Join(err, n.cfg.Journal.Delete(clean, kindSandbox, id))
}

// removeDir removes a sandbox's folder. What is still mounted below it is
// unmounted first, so that nothing is removed through a mount.
func removeDir(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var below []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+string(filepath.Separator)) {
			below = append(below, f[4])
		}
	}
	for _, m := range slices.Backward(below) {
		err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return os.RemoveAll(dir)
}
