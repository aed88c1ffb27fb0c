package fleet

import (
	"context"
	"errors"
	"time"

	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/node/snapshots"
)

const (
	// endSaveTimeout bounds a snapshot of an instance that is to be stopped.
	endSaveTimeout = 2 * time.Minute
	// minRetry is how soon a snapshot is tried again at the earliest; after
	// failures the node says when.
	minRetry = 10 * time.Second
)

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
		saved, err := r.save(ctx, i, s, next)
		switch {
		case saved || ctx.Err() != nil:
			return
		case err == nil: // the policy wants to be asked again
			served = next + 1
			continue
		case errors.Is(err, gateway.ErrNoInstance), errors.Is(err, node.ErrEndedBySnapshot):
			return
		case errors.Is(err, snapshots.ErrNotNow):
		default:
			r.fleet.cfg.Log.Warn("snapshot", "revision", r.key.String(), "id", i.ID(), "error", err)
		}
		// An instance may live long: it tries again.
		select {
		case <-r.fleet.after(max(time.Until(s.SaveAfter()), minRetry)):
		case <-i.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// save makes a snapshot of an instance in a moment without requests, if its
// policy wants one after so many responses.
func (r *revision) save(ctx context.Context, i Instance, s Snapshotter, responses uint64) (saved bool, err error) {
	resume, err := r.fleet.cfg.Traffic.Pause(ctx, r.key, i.ID(), responses)
	if err != nil {
		return false, err
	}
	saved, err = s.SaveNow(context.WithoutCancel(ctx), snapshots.AtResponse, responses)
	if !errors.Is(err, node.ErrEndedBySnapshot) { // else watch takes it out of service, and no request shall meet it
		resume()
	}
	return saved, err
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
	if _, err := s.SaveNow(ctx, snapshots.AtEnd, responses); err != nil && !errors.Is(err, snapshots.ErrNotNow) {
		r.fleet.cfg.Log.Warn("snapshot at scale-down", "revision", r.key.String(), "id", i.ID(), "error", err)
	}
}

var _ Traffic = (*gateway.Gateway)(nil)
