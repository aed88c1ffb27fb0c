// Package autoscale decides how many instances a revision should have. It
// does no work and reads no clock: time is a parameter, so that a decision
// can be replayed.
package autoscale

import (
	"math"
	"time"
)

// Policy bounds and shapes the decisions for one revision.
type Policy struct {
	// MinScale and MaxScale bound the number of instances. MaxScale 0 means
	// no limit.
	MinScale, MaxScale int
	// Target is how many requests at a time one instance is meant to serve.
	// It must be positive.
	Target float64
	// StableWindow is how long demand must stay lower before an instance is
	// given up.
	StableWindow time.Duration
	// IdleAfter is how long a revision without any request keeps its last
	// instance. It is at least StableWindow in effect.
	IdleAfter time.Duration
}

// Scaler follows the demand of one revision. It is not safe for concurrent use.
//
// It answers a rise at once and a fall only after the window has passed: the
// desired scale is the highest that any moment in the window asked for, which
// is Knative's max-scale-down-delay applied to the whole window.
type Scaler struct {
	samples []sample // a queue, scale falling and time rising: a sliding-window maximum
	busy    time.Time
}

type sample struct {
	at    time.Time
	scale int
}

// tolerance is of an instance: an average over time that is one request but
// for rounding needs no second instance.
const tolerance = 1e-3

// Desired returns how many instances the revision should have, given how many
// requests are in it now, running or queued.
func (s *Scaler) Desired(now time.Time, p Policy, concurrency float64) int {
	want := 0
	if concurrency > 0 {
		want = max(1, int(math.Ceil(concurrency/p.Target-tolerance)))
		s.busy = now
	}
	for len(s.samples) > 0 && s.samples[len(s.samples)-1].scale <= want {
		s.samples = s.samples[:len(s.samples)-1]
	}
	s.samples = append(s.samples, sample{now, want})
	for s.samples[0].at.Before(now.Add(-p.StableWindow)) {
		s.samples = s.samples[1:]
	}
	desired := s.samples[0].scale
	if desired == 0 && !s.busy.IsZero() && now.Sub(s.busy) < p.IdleAfter {
		desired = 1
	}
	desired = max(desired, p.MinScale)
	if p.MaxScale > 0 {
		desired = min(desired, p.MaxScale)
	}
	return desired
}

// Settled reports whether Desired would return the same at any later time if
// no request came: nothing but MinScale keeps instances. A caller need not
// ask again until a request does come.
func (s *Scaler) Settled(now time.Time, p Policy) bool {
	return (s.busy.IsZero() || now.Sub(s.busy) >= p.IdleAfter) &&
		(len(s.samples) == 0 || s.samples[0].scale == 0)
}

// Touch counts the revision as used now, so that an instance that was started
// for another reason than a request is kept for IdleAfter.
func (s *Scaler) Touch(now time.Time) { s.busy = now }
