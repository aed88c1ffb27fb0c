package gvisor

import (
	"fmt"
	"strconv"

	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/seccheck"
	pb "gvisor.dev/gvisor/pkg/sentry/seccheck/points/points_go_proto"
)

// limitTasks limits the function's processes and threads, in gVisor's kernel.
//
// A host's pids cgroup cannot do it: it counts gVisor's own threads and
// processes, and one that it refuses is fatal to the whole sandbox. gVisor's
// emulation of cgroups has a limit, too, but no safe way to set it from
// outside: with cgroup v1 it refuses, with v2 it crashes. So we use its
// runtime monitoring, which can refuse a clone.
func limitTasks(limit string) error {
	n, err := strconv.Atoi(limit)
	if err != nil || n <= 0 {
		return fmt.Errorf("annotation %s: %q is not a positive number", annotationPIDs, limit)
	}
	seccheck.Global.AppendSink(&taskLimit{max: n}, []seccheck.PointReq{{Pt: seccheck.PointClone}})
	return nil
}

// taskLimit refuses clones.
type taskLimit struct {
	seccheck.SinkDefaults
	max int
}

// Name implements seccheck.Sink.
func (*taskLimit) Name() string { return "skep-task-limit" }

// Clone implements seccheck.Sink. The new task exists by now, and is counted.
func (l *taskLimit) Clone(ctx context.Context, _ seccheck.FieldSet, _ *pb.CloneInfo) error {
	k := kernel.KernelFromContext(ctx)
	if k != nil && k.TaskSet().Root.NumTasks() > l.max {
		return linuxerr.EAGAIN
	}
	return nil
}

var _ seccheck.Sink = (*taskLimit)(nil)
