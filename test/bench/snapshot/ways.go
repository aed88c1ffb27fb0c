package main

import (
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// way is one way to get a function's first response.
type way struct {
	name    string
	restore *sandbox.Restore // nil: boot
	path    string           // of the request
	// hot and cold are the runs with the snapshot's files in the page cache
	// and without.
	hot, cold []timing
	// resident is the largest share of the files that could not be made cold.
	resident float64
}

// plan lists the ways that the driver has.
func (s *subject) plan() {
	s.ways = []*way{{name: wayBoot, path: "/"}}
	if len(s.base.Dirs) == 0 {
		return
	}
	s.planImage("", s.base)
	if s.diff != nil {
		s.planImage(onDiff, *s.diff)
	}
}

func (s *subject) planImage(prefix string, i sandbox.Image) {
	bare := i
	bare.WorkingSet = ""
	// A driver without a mode of its own for pools does all it can ahead.
	pool := prefix == "" && s.driver.Capabilities().PreparedMode == ""
	add := func(name string, mode sandbox.RestoreMode, i sandbox.Image) {
		s.ways = append(s.ways, &way{name: prefix + name, path: "/", restore: &sandbox.Restore{Image: i, Mode: mode}})
		if pool && (mode == sandbox.RestoreHint || mode == sandbox.RestorePager) {
			s.ways = append(s.ways, &way{name: onPool + name, path: "/", restore: &sandbox.Restore{Image: i, Mode: mode, Ahead: true, Port: port}})
		}
	}
	for _, mode := range s.driver.Capabilities().RestoreModes {
		if prefix == onDiff && s.driver.Capabilities().OnDemandMemory && mode == sandbox.RestoreEager {
			continue // as the base's: all is copied
		}
		switch mode {
		case sandbox.RestoreHint:
			if i.WorkingSet != "" {
				add(string(mode), mode, i)
			}
		case sandbox.RestorePager:
			if prefix == "" {
				add(wayOnDemand, mode, bare)
			}
			if i.WorkingSet != "" {
				add(wayPager, mode, i)
			}
		default:
			add(string(mode), mode, bare)
		}
	}
}

// find is the way with a name, nil if there is none.
func (s *subject) find(name string) *way {
	i := slices.IndexFunc(s.ways, func(w *way) bool { return w.name == name })
	if i < 0 || len(s.ways[i].hot)+len(s.ways[i].cold) == 0 {
		return nil
	}
	return s.ways[i]
}

// pooled says that what can be done ahead was: Prepare has most of the time.
func (w *way) pooled() bool { return w.restore != nil && w.restore.Ahead }

// best is the restore for which a median is the smallest, among those that
// are not on a diff. It is nil if there is none.
func (s *subject) best(measure func(*way) time.Duration) *way {
	var best *way
	for _, x := range s.ways {
		if x.restore == nil || len(x.restore.Image.Dirs) > 1 || measure(x) == 0 {
			continue
		}
		if best == nil || measure(x) < measure(best) {
			best = x
		}
	}
	return best
}

func hotRequest(w *way) time.Duration  { return requests(w.hot) }
func coldRequest(w *way) time.Duration { return requests(w.cold) }

// hotTotal and coldTotal are 0 for what is only meant to be prepared.
func hotTotal(w *way) time.Duration  { return w.total(w.hot) }
func coldTotal(w *way) time.Duration { return w.total(w.cold) }

func (w *way) total(ts []timing) time.Duration {
	if w.pooled() {
		return 0
	}
	return totals(ts)
}
