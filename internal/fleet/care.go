package fleet

import (
	"context"
	"time"

	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node/snapshots"
)

// endSaveTimeout bounds a snapshot of an instance that is to be stopped.
const endSaveTimeout = 2 * time.Minute

// care makes snapshots of an instance and ends its recording when it is time.
func (r *revision) care(i Instance) {
	s, ok := i.(Snapshotter)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	t := r.fleet.cfg.Traffic
	if t.Served(ctx, r.key, i.ID(), 1) != nil {
		return // it goes, or went
	}
	if took := t.FirstResponse(r.key, i.ID()); took > 0 {
		s.Answered(took)
	}
	if err := s.EndRecording(ctx); err != nil && ctx.Err() == nil {
		r.fleet.cfg.Log.Warn("record working set", "revision", r.key.String(), "id", i.ID(), "error", err)
	}
	for served := uint64(1); ; {
		next := s.NextSave(served - 1)
		if next == 0 {
			return
		}
		resume, err := t.Pause(ctx, r.key, i.ID(), next)
		if err != nil {
			return
		}
		saved, err := s.SaveNow(context.WithoutCancel(ctx), snapshots.AtResponse, next)
		resume()
		if saved {
			return
		}
		if err != nil && ctx.Err() == nil {
			r.fleet.cfg.Log.Warn("snapshot", "revision", r.key.String(), "id", i.ID(), "error", err)
			return // others of the revision may have more luck
		}
		served = next + 1
	}
}

// saveAtEnd makes a snapshot of an instance that has had its last request, if
// its policy wants one.
func (r *revision) saveAtEnd(i Instance, responses uint64) {
	s, ok := i.(Snapshotter)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endSaveTimeout)
	defer cancel()
	if _, err := s.SaveNow(ctx, snapshots.AtEnd, responses); err != nil {
		r.fleet.cfg.Log.Warn("snapshot at scale-down", "revision", r.key.String(), "id", i.ID(), "error", err)
	}
}

var _ Traffic = (*gateway.Gateway)(nil)
