package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/cgroup/stall"
)

// WaitStalled returns true once the group's processes have made no progress
// for want of memory, for [stall.Time] at least, and false when ctx ends, when
// the group is gone, or when it has no limit.
//
// It looks every [stall.Time], and has the kernel measure nothing: to be told
// would cost a thread of the kernel for each group.
func (g *Group) WaitStalled(ctx context.Context) (bool, error) {
	tick := time.NewTicker(stall.Time)
	defer tick.Stop()
	var last stall.Usage
	for {
		u, err := g.usage()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("watch cgroup %s: %w", g.path, err)
		case u.Limit == 0:
			return false, nil
		case last.Limit > 0 && u.StalledSince(last):
			return true, nil
		}
		last = u
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false, nil
		}
	}
}

func (g *Group) usage() (stall.Usage, error) {
	if g.h.v2() {
		return stall.Read(filepath.Join(g.h.unified, g.path))
	}
	return stall.ReadV1(g.v1Dir("memory"), g.v1Dir("cpuacct"))
}
