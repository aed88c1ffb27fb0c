package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// aim is one of those that the project has set itself.
type aim struct {
	what     string
	goal     string
	measured string
	met      string // yes, no, or why it is not known
}

func (r *results) subject(driver, fn string) *subject {
	i := slices.IndexFunc(r.subjects, func(s *subject) bool { return s.driver.Name() == driver && s.fn.name == fn })
	if i < 0 {
		return nil
	}
	return r.subjects[i]
}

// aims compares with what was aimed at. All ratios are of medians of one run.
func (r *results) aims() []aim {
	out := []aim{
		r.againstBoot("gvisor", fnNumpy, 15),
		r.againstBoot("gvisor", fnBig, 12),
		r.againstBoot("qemu", fnPython, 20),
	}
	for _, s := range r.subjects {
		if a, ok := onDemand(s, "cold", 3.7); ok {
			out = append(out, a)
		}
	}
	for _, s := range r.far {
		if a, ok := onDemand(s, "snapshot in an object store 1 ms away", 10); ok {
			out = append(out, a)
		}
	}
	for _, s := range r.subjects {
		out = append(out, againstMap(s)...)
	}
	for _, s := range r.subjects {
		out = append(out, diffOverhead(s)...)
	}
	return out
}

func yes(met bool) string {
	if met {
		return "yes"
	}
	return "**no**"
}

func title(s *subject) string { return s.driver.Name() + ", " + s.fn.title }

func (r *results) againstBoot(driver, fn string, goal float64) aim {
	a := aim{what: fmt.Sprintf("%s, %s: restored against booted, hot", driver, fn), goal: fmt.Sprintf("≥ %.0fx", goal), met: "not measured"}
	s := r.subject(driver, fn)
	if s == nil {
		return a
	}
	boot, best, bare := s.find(wayBoot), s.best(hotRequest), s.best(hotTotal)
	if boot == nil || best == nil {
		return a
	}
	a.what = title(s) + ": restored against booted, hot"
	whole := totals(boot.hot)
	got := ratio(whole, hotRequest(best))
	a.measured = fmt.Sprintf("%.1fx with a prepared sandbox (%s against %s, %s); %.1fx from nothing (%s, %s)", got, ms(whole), ms(hotRequest(best)), best.name,
		ratio(whole, hotTotal(bare)), ms(hotTotal(bare)), bare.name)
	a.met = yes(got >= goal)
	return a
}

// onDemand compares prefetching with the same pager on demand.
func onDemand(s *subject, where string, goal float64) (aim, bool) {
	slow, fast := s.find(wayOnDemand), s.find(wayPager)
	if slow == nil || fast == nil || len(slow.cold) == 0 || len(fast.cold) == 0 {
		return aim{}, false
	}
	got := ratio(coldRequest(slow), coldRequest(fast))
	return aim{
		what: title(s) + ": prefetch against on-demand by the same pager, " + where, goal: fmt.Sprintf("≥ %.1fx", goal),
		measured: fmt.Sprintf("%.1fx with a prepared sandbox (%s against %s); %.1fx from nothing", got, ms(coldRequest(slow)), ms(coldRequest(fast)),
			ratio(coldTotal(slow), coldTotal(fast))),
		met: yes(got >= goal),
	}, true
}

// againstMap compares the best way that uses a working set with plain mapping.
func againstMap(s *subject) []aim {
	plain := s.find(string(sandbox.RestoreMap))
	if plain == nil {
		return nil
	}
	var out []aim
	for _, c := range []struct {
		cache string
		goal  float64
		get   func(*way) time.Duration
		all   func(*way) time.Duration
	}{{"hot", 1, hotRequest, hotTotal}, {"cold", 1.2, coldRequest, coldTotal}} {
		with := s.best(func(w *way) time.Duration {
			if w.restore.Image.WorkingSet == "" {
				return 0
			}
			return c.all(w)
		})
		if with == nil {
			continue
		}
		got := ratio(c.all(plain), c.all(with))
		// The noise of medians is no slowness.
		met := got >= c.goal || c.goal == 1 && got >= 0.97
		out = append(out, aim{
			what: title(s) + ": with the working set (" + with.name + ") against plain mapping, " + c.cache, goal: fmt.Sprintf("≥ %.1fx", c.goal),
			measured: fmt.Sprintf("%.2fx from nothing (%s against %s); %.2fx with a prepared sandbox", got, ms(c.all(plain)), ms(c.all(with)),
				ratio(c.get(plain), c.get(with))),
			met: yes(met),
		})
	}
	return out
}

// diffOverhead is the most, in any mode, that a diff adds to the restore of
// its base, both with a hot page cache.
func diffOverhead(s *subject) []aim {
	var worst float64
	var what string
	for _, x := range s.ways {
		base := s.find(x.name)
		diff := s.find(onDiff + x.name)
		if base == nil || diff == nil || len(base.hot) == 0 || len(diff.hot) == 0 {
			continue
		}
		if more := ratio(hotTotal(diff), hotTotal(base)) - 1; what == "" || more > worst {
			worst = more
			what = fmt.Sprintf("%+.0f %% at most (%s: %s against %s)", 100*more, x.name, ms(hotTotal(diff)), ms(hotTotal(base)))
		}
	}
	if what == "" {
		return nil
	}
	return []aim{{what: title(s) + ": what a diff adds to its base's restore", goal: "< 10 %", measured: what, met: yes(worst < 0.1)}}
}

func ratio(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func ms(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.0f ms", float64(d)/1e6)
}
