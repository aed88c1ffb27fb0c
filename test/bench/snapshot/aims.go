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
	for _, s := range r.sizes {
		out = append(out, s.aims()...)
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
	nothing := ratio(coldTotal(slow), coldTotal(fast))
	how := "with a prepared sandbox"
	if p, q := s.find(onPool+wayOnDemand), s.find(onPool+wayPager); p != nil && q != nil {
		slow, fast, how = p, q, "in a pool"
	}
	got := ratio(coldRequest(slow), coldRequest(fast))
	low, high := interval(pick(slow.cold, (*timing).request), pick(fast.cold, (*timing).request))
	return aim{
		what: title(s) + ": prefetch against on-demand by the same pager, " + where, goal: fmt.Sprintf("≥ %.1fx", goal),
		measured: fmt.Sprintf("%.1fx %s (%s against %s; %.1f to %.1f); %.1fx from nothing%s", got, how, ms(coldRequest(slow)), ms(coldRequest(fast)),
			low, high, nothing, pagesAlone(s, slow, fast)),
		met: yes(got >= goal),
	}, true
}

// pagesAlone says what two ways take, cold, beyond the same start with all pages
// in memory: the part of it that a pager can change.
func pagesAlone(s *subject, slow, fast *way) string {
	floor := s.find(string(sandbox.RestoreHint))
	if p := s.find(onPool + string(sandbox.RestoreHint)); slow.pooled() && p != nil {
		floor = p
	}
	if floor == nil || len(floor.hot) == 0 {
		return ""
	}
	all := hotRequest(floor)
	return fmt.Sprintf(". With all pages in memory: %s; more than that: %s against %s", ms(all), ms(coldRequest(slow)-all), ms(coldRequest(fast)-all))
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
		of    func(*way) []timing
	}{{"hot", 1, func(w *way) []timing { return w.hot }}, {"cold", 1.2, func(w *way) []timing { return w.cold }}} {
		with := s.best(func(w *way) time.Duration {
			if w.restore.Image.WorkingSet == "" {
				return 0
			}
			return w.total(c.of(w))
		})
		if with == nil {
			continue
		}
		slow, fast := c.of(plain), c.of(with)
		got := ratio(totals(slow), totals(fast))
		low, high := interval(pick(slow, (*timing).total), pick(fast, (*timing).total))
		met := yes(got >= c.goal)
		if got < c.goal && c.goal == 1 && high >= 1 {
			met = "yes: no difference that the runs show"
		}
		out = append(out, aim{
			what: title(s) + ": with the working set (" + with.name + ") against plain mapping, " + c.cache, goal: fmt.Sprintf("≥ %.1fx", c.goal),
			measured: fmt.Sprintf("%.2fx from nothing (%s against %s; %.2f to %.2f); %.2fx with a prepared sandbox", got, ms(totals(slow)), ms(totals(fast)),
				low, high, ratio(requests(slow), requests(fast))),
			met: met,
		})
	}
	return out
}

// diffOverhead is what a diff adds to the restore of its base in the driver's
// own mode, both with a hot page cache, and in the mode where it adds most.
func diffOverhead(s *subject) []aim {
	var own, worst float64
	var what, most string
	for _, x := range s.ways {
		diff := s.find(onDiff + x.name)
		if diff == nil || len(x.hot) == 0 || len(diff.hot) == 0 {
			continue
		}
		more := 100 * (ratio(hotTotal(diff), hotTotal(x)) - 1)
		text := fmt.Sprintf("%+.0f %% (%s: %s against %s", more, x.name, ms(hotTotal(diff)), ms(hotTotal(x)))
		if what == "" { // the modes are in the driver's order
			low, high := interval(pick(diff.hot, (*timing).total), pick(x.hot, (*timing).total))
			own, what = more, fmt.Sprintf("%s; %+.0f to %+.0f)", text, 100*(low-1), 100*(high-1))
		}
		if most == "" || more > worst {
			worst, most = more, text+")"
		}
	}
	if what == "" {
		return nil
	}
	return []aim{{what: title(s) + ": what a diff adds to its base's restore", goal: "< 10 %", measured: what + "; in any mode at most " + most, met: yes(own < 10)}}
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
