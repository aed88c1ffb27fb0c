package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/autoscale"
	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/node/snapshots"
)

// saver is a function of which snapshots are made, as a test has it.
type saver struct {
	*function
	saves *saves
}

// saves is what becomes of the snapshots of a world's instances.
type saves struct {
	policy snapshots.Policy
	record error // of EndRecording

	mu      sync.Mutex
	results []error // of the first tries, by all instances; nil: a snapshot
	tries   []try
	pause   time.Duration // asked for by SaveAfter
}

type try struct {
	id        string
	moment    snapshots.Moment
	responses uint64
}

var errDisk = errors.New("no space left on device")

// errEnds has the instance end, as the node's do then.
var errEnds = fmt.Errorf("save: %w", node.ErrEndedBySnapshot)

func (s *saver) NextSave(responses uint64) uint64 {
	return s.saves.policy.Next(snapshots.Situation{Responses: responses})
}

func (s *saver) SaveNow(_ context.Context, m snapshots.Moment, responses uint64) (bool, error) {
	if !s.saves.policy.Save(snapshots.Situation{Moment: m, Responses: responses}) {
		return false, nil
	}
	s.saves.mu.Lock()
	s.saves.tries = append(s.saves.tries, try{s.id, m, responses})
	var err error
	if n := len(s.saves.tries); n <= len(s.saves.results) {
		err = s.saves.results[n-1]
	}
	s.saves.mu.Unlock()
	if errors.Is(err, node.ErrEndedBySnapshot) {
		s.exit(&node.StartError{Reason: node.ReasonSnapshot, Err: err})
	}
	return err == nil, err
}

func (s *saver) SaveAfter() time.Time {
	s.saves.mu.Lock()
	defer s.saves.mu.Unlock()
	return time.Now().Add(s.saves.pause)
}

func (s *saver) Answered(time.Duration)             {}
func (s *saver) EndRecording(context.Context) error { return s.saves.record }
func (s *saver) Kind() node.StartKind               { return node.Booted }

func (s *saves) tried() []try {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]try(nil), s.tries...)
}

// newSaving is a world whose instances are savers. It passes time by hand:
// what is asked to wait is sent the pause, and goes on when told to.
func newSaving(t *testing.T, policy string, results ...error) (w *world, s *saves, pauses chan time.Duration, goOn chan time.Time) {
	p, err := snapshots.ParsePolicy(policy)
	if err != nil {
		t.Fatal(err)
	}
	s = &saves{policy: p, results: results}
	w = newWorld(t, nil)
	w.wrap = func(f *function) Instance { return &saver{f, s} }
	pauses, goOn = make(chan time.Duration, 100), make(chan time.Time)
	w.fleet.after = func(d time.Duration) <-chan time.Time {
		pauses <- d
		return goOn
	}
	return w, s, pauses, goOn
}

// TestSaveFails: an instance of which no snapshot could be made goes on, and is
// tried again after the pause that the node asks for, as long as it lives.
func TestSaveFails(t *testing.T) {
	t.Parallel()
	for name, results := range map[string][]error{
		"disk full":          {errDisk},
		"again and again":    {errDisk, errDisk, fmt.Errorf("%w: too early", snapshots.ErrNotNow), errDisk},
		"another makes one":  {fmt.Errorf("%w: one is being made", snapshots.ErrNotNow)},
		"time is up, though": {context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, s, pauses, goOn := newSaving(t, "after-n=2", results...)
			s.record = errDisk // that harms nobody, either
			key := w.deploy("a", 1, autoscale.Policy{MaxScale: 1, IdleAfter: time.Hour})
			w.wantOK("a")
			w.wantOK("a")
			for n := range results {
				want := max(time.Duration(n)*time.Minute, minRetry)
				if d := <-pauses; d > want || d < want-patience {
					t.Errorf("pause %d is %s, want %s", n, d, want)
				}
				if got := len(s.tried()); got != n+1 {
					t.Fatalf("%d tries before pause %d is over", got, n)
				}
				w.wantOK("a") // it is in rotation meanwhile
				s.mu.Lock()
				s.pause = time.Duration(n+1) * time.Minute
				s.mu.Unlock()
				goOn <- time.Time{}
			}
			eventually(t, "a snapshot", func() bool { return len(s.tried()) == len(results)+1 })
			w.wantOK("a")
			for _, x := range s.tried() {
				if x.responses != 2 || x.moment != snapshots.AtResponse {
					t.Errorf("tried %+v", x)
				}
			}
			if n := w.launched(); n != 1 || w.fleet.Ready(key) != 1 {
				t.Errorf("%d launches, %d ready", n, w.fleet.Ready(key))
			}
		})
	}
}

// TestSaveEnds: an instance that does not survive it is replaced at once, and
// that does not count as the function's failure.
func TestSaveEnds(t *testing.T) {
	t.Parallel()
	w, s, _, _ := newSaving(t, "after-first-response", errEnds, errEnds)
	key := w.deploy("a", 1, autoscale.Policy{MinScale: 1, MaxScale: 1, IdleAfter: time.Hour})
	for n := range 3 {
		w.wantOK("a") // never one that was given to the dead instance
		eventually(t, "another try", func() bool { return len(s.tried()) == n+1 })
	}
	eventually(t, "one that is ready", func() bool { return w.fleet.Ready(key) == 1 })
	w.wantOK("a")
	if n := w.launched(); n != 3 {
		t.Errorf("%d launches, want 3", n)
	}
	r := w.fleet.get(key)
	r.mu.Lock()
	failures, notBefore := r.failures, r.notBefore
	r.mu.Unlock()
	if failures != 0 || !notBefore.IsZero() {
		t.Errorf("it backs off: %d failures, not before %s", failures, notBefore)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Reason != node.ReasonSnapshot {
			t.Errorf("event %+v", e)
		}
	}
	if len(w.events) != 2 {
		t.Errorf("%d events, want 2", len(w.events))
	}
}

// TestSaveAtEndFails: an instance that is stopped is stopped all the same.
func TestSaveAtEndFails(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"disk full": errDisk, "ends": errEnds, "not now": snapshots.ErrNotNow} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, s, _, _ := newSaving(t, "at-scale-down", err)
			w.deploy("a", 1, autoscale.Policy{IdleAfter: 50 * time.Millisecond})
			w.wantOK("a")
			eventually(t, "none is left", func() bool { return w.running() == 0 && len(s.tried()) == 1 })
			w.wantOK("a")
		})
	}
}

// TestSavePauseEnds: nobody waits for an instance that is no more.
func TestSavePauseEnds(t *testing.T) {
	t.Parallel()
	w, s, pauses, _ := newSaving(t, "after-first-response", errDisk)
	w.deploy("a", 1, autoscale.Policy{IdleAfter: 50 * time.Millisecond})
	w.wantOK("a")
	<-pauses
	eventually(t, "none is left", func() bool { return w.running() == 0 })
	if n := len(s.tried()); n != 1 {
		t.Errorf("%d tries", n)
	}
	// The world's end waits for all of a revision's goroutines.
}
