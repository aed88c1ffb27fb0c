// Package pace learns which way of starting a revision is the faster one here:
// booting it, or restoring a snapshot. A small function in Go may boot faster
// than it restores; a large one in Java never does.
package pace

import (
	"slices"
	"sync"
	"time"
)

// Kind is a way to start.
type Kind int

// The kinds.
const (
	Restore Kind = iota
	Boot
)

const (
	// keep is how many starts of a kind are remembered, the latest.
	keep = 5
	// enough is after how many starts of a kind its median is trusted.
	enough = 3
	// retryStarts and retryPause say how often the slower kind is tried again:
	// not before retryStarts * ratio^2 starts have been of the faster one, ratio
	// being by how much it is slower, nor within the pause. That costs
	// (ratio-1) / (retryStarts * ratio^2) of the starts' time at the most, which
	// is below 1/40 for any ratio.
	retryStarts = 10
	retryPause  = time.Minute
)

// Starts are the measured starts of one revision. The zero value knows none.
// It is safe for concurrent use, and reads no clock.
type Starts struct {
	mu    sync.Mutex
	kinds [2]history
	tried time.Time // when the slower kind was last tried again
}

type history struct {
	samples []*Sample // oldest first
	others  int       // starts of the other kind since the last of this one
}

// Sample is one start.
type Sample struct{ took time.Duration }

// Note notes a start, and the time it took until the instance was ready. Boots
// and restores are to be measured alike, from nothing.
func (s *Starts) Note(k Kind, ready time.Duration) *Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := &Sample{ready}
	h := &s.kinds[k]
	if h.samples = append(h.samples, x); len(h.samples) > keep {
		h.samples = slices.Delete(h.samples, 0, 1)
	}
	h.others = 0
	s.kinds[1-k].others++
	return x
}

// Answered adds the time of the first response to a start: what was not loaded
// at the start is then. An instance that never answers counts with the time to
// ready alone.
func (s *Starts) Answered(x *Sample, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.took += took
}

// Choose says how to start an instance of which there is a snapshot. boot is
// what a boot took elsewhere or earlier, for as long as none was measured; 0:
// not known.
//
// The kind with the smaller median of its latest starts is chosen, and the
// other one now and then, as either may have changed. Before there are enough
// restores, that is a restore; a boot that promises to be faster is measured
// as often, too.
func (s *Starts) Choose(now time.Time, boot time.Duration) Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	restores, boots := s.kinds[Restore].samples, s.kinds[Boot].samples
	if m := median(boots); m > 0 {
		boot = m
	}
	restore := median(restores)
	if len(restores) < enough || boot <= 0 {
		return Restore
	}
	better, other, ratio := Restore, Boot, float64(boot)/float64(max(restore, 1))
	if boot < restore {
		if len(boots) < enough {
			return Boot
		}
		better, other, ratio = Boot, Restore, float64(restore)/float64(boot)
	}
	due := float64(s.kinds[other].others) >= retryStarts*ratio*ratio
	if due && now.Sub(s.tried) >= retryPause {
		s.tried = now
		return other
	}
	return better
}

// median is the middle one, or the lesser of two; 0 if there is none.
func median(samples []*Sample) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	all := make([]time.Duration, 0, len(samples))
	for _, x := range samples {
		all = append(all, x.took)
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}
