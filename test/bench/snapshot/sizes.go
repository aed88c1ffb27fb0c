package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"github.com/skep-dev/skep/internal/sandbox"
)

// lookups are how many pages of its table a request to the function of 300 MB
// reads, so that the working sets are as large as those of REAP's functions: 8
// to 99 MB, 24 MB in the mean (Ustiugov et al., ASPLOS 2021, section 4.4).
var lookups = []int{0, 3600, 9800, 22800}

// sizes measures what a working set is worth by its size: one snapshot, from
// which requests need more or less, always with a cold page cache.
type sizes struct {
	*subject
	all []*sized
}

// sized is one size. The ways are nil where the driver has no such mode.
type sized struct {
	lookups                            int
	set                                set
	onDemand, prefetch, mapped, hinted *way
}

func measureSizes(ctx context.Context, w *world, d sandbox.Driver, fn *function, runs int) (_ *sizes, err error) {
	s := &sizes{subject: &subject{w: w, driver: d, fn: fn, dir: filepath.Join(w.dir, d.Name()+"-sizes"), noLayers: true}}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	if err := s.snapshots(ctx); err != nil {
		return nil, err
	}
	var turns []turn
	for _, n := range lookups {
		one := &sized{lookups: n}
		path := fmt.Sprint("/?lookups=", n)
		with := sandbox.Image{Dirs: s.base.Dirs}
		if one.set, err = s.record(ctx, &with, path, fmt.Sprintf("%s-%d.ws", s.base.Dirs[0], n)); err != nil {
			return nil, err
		}
		bare := sandbox.Image{Dirs: s.base.Dirs}
		for _, mode := range d.Capabilities().RestoreModes {
			add := func(to **way, name string, r sandbox.Restore) {
				*to = &way{name: name, path: path, restore: &r}
				turns = append(turns, turn{*to, true})
			}
			switch mode {
			case sandbox.RestorePager:
				ahead := d.Capabilities().PreparedMode == ""
				add(&one.onDemand, wayOnDemand, sandbox.Restore{Image: bare, Mode: mode, Ahead: ahead, Port: port})
				add(&one.prefetch, wayPager, sandbox.Restore{Image: with, Mode: mode, Ahead: ahead, Port: port})
			case sandbox.RestoreMap:
				add(&one.mapped, string(mode), sandbox.Restore{Image: bare, Mode: mode})
			case sandbox.RestoreHint:
				add(&one.hinted, string(mode), sandbox.Restore{Image: with, Mode: mode})
			}
		}
		s.all = append(s.all, one)
	}
	return s, s.measure(ctx, turns, runs)
}

// gain is by how much prefetching is faster than the same pager on demand, and
// its 95 % confidence interval.
func (x *sized) gain() (got, low, high float64) {
	slow, fast := pick(x.onDemand.cold, (*timing).request), pick(x.prefetch.cold, (*timing).request)
	low, high = interval(slow, fast)
	return ratio(median(slow), median(fast)), low, high
}

// overMap is by how much mapping with hints is faster than without.
func (x *sized) overMap() (got, low, high float64) {
	slow, fast := pick(x.mapped.cold, (*timing).total), pick(x.hinted.cold, (*timing).total)
	low, high = interval(slow, fast)
	return ratio(median(slow), median(fast)), low, high
}

func (x *sized) measured() bool { return x.onDemand != nil && len(x.onDemand.cold) > 0 }
func (x *sized) mapping() bool {
	return x.mapped != nil && x.hinted != nil && len(x.mapped.cold) > 0 && len(x.hinted.cold) > 0
}

// aims has one for each size.
func (s *sizes) aims() []aim {
	var out []aim
	var sum float64
	for _, x := range s.all {
		if !x.measured() {
			return out
		}
		got, low, high := x.gain()
		sum += got
		out = append(out, aim{
			what:     fmt.Sprintf("%s, working set of %s: prefetch against on-demand by the same pager, cold", s.driver.Name(), size(x.set.bytes)),
			goal:     "≥ 3.7x",
			measured: fmt.Sprintf("%.1fx in a pool (%s against %s; %.1f to %.1f)", got, ms(requests(x.onDemand.cold)), ms(requests(x.prefetch.cold)), low, high),
			met:      yes(got >= 3.7),
		})
	}
	mean := sum / float64(len(s.all))
	return append(out, aim{
		what: fmt.Sprintf("%s, working sets of %s to %s as REAP's functions have: the mean of that", s.driver.Name(), size(s.all[0].set.bytes), size(s.all[len(s.all)-1].set.bytes)),
		goal: "≥ 3.7x", measured: fmt.Sprintf("%.1fx", mean), met: yes(mean >= 3.7),
	})
}

func (r *results) writeSizes(w io.Writer, plots string) error {
	for _, s := range r.sizes {
		fmt.Fprintf(w, "## What a working set is worth, by its size: %s\n\n", s.driver.Name())
		fmt.Fprintf(w, `%s, whose request reads so many pages that lie all over its table; one snapshot, a recording for each size, always a cold page cache. REAP's 3.7x is the
mean of functions with working sets of 8 to 99 MB, 24 MB in the mean. Pager: out of a pool. Mapping: from nothing. Medians of %d, milliseconds; ratios with their 95 %% confidence intervals.

`, s.fn.title, r.o.runs)
		fmt.Fprintln(w, "| working set | pages read | pager, on demand | with prefetch | ratio | map | map+hint | ratio |\n|---|---|---|---|---|---|---|---|")
		for _, x := range s.all {
			if !x.measured() {
				continue
			}
			got, low, high := x.gain()
			fmt.Fprintf(w, "| %s | %d | %s | %s | **%.1fx** (%.1f to %.1f) |", size(x.set.bytes), x.lookups, cell(requests(x.onDemand.cold)), cell(requests(x.prefetch.cold)), got, low, high)
			if x.mapping() {
				got, low, high = x.overMap()
				fmt.Fprintf(w, " %s | %s | **%.1fx** (%.1f to %.1f) |\n", cell(totals(x.mapped.cold)), cell(totals(x.hinted.cold)), got, low, high)
			} else {
				fmt.Fprintln(w, " | | |")
			}
		}
		name, err := s.plot(plots)
		if err != nil {
			return fmt.Errorf("plot: %w", err)
		}
		fmt.Fprintf(w, "\n![%s: starts by the size of the working set](%s/%s)\n\n", s.driver.Name(), r.o.plots, name)
	}
	return nil
}

// plot draws how long starts take by the size of the working set.
func (s *sizes) plot(dir string) (string, error) {
	p := plot.New()
	p.Title.Text = s.driver.Name() + ": to the first response, cold, by the size of the working set"
	p.X.Label.Text = "working set, MiB"
	p.Y.Label.Text = "milliseconds"
	p.X.Min, p.Y.Min = 0, 0
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for i, c := range []struct {
		name string
		of   func(*sized) *way
	}{
		{wayOnDemand + " (pool)", func(x *sized) *way { return x.onDemand }},
		{wayPager + " (pool)", func(x *sized) *way { return x.prefetch }},
		{"map", func(x *sized) *way { return x.mapped }},
		{"map+hint", func(x *sized) *way { return x.hinted }},
	} {
		var xys plotter.XYs
		for _, x := range s.all {
			if way := c.of(x); way != nil && len(way.cold) > 0 {
				y := totals(way.cold)
				if way.pooled() {
					y = requests(way.cold)
				}
				xys = append(xys, plotter.XY{X: float64(x.set.bytes) / mib, Y: float64(y) / 1e6})
			}
		}
		if len(xys) == 0 {
			continue
		}
		line, points, err := plotter.NewLinePoints(xys)
		if err != nil {
			return "", err
		}
		line.Color, points.Color = plotutil.Color(i), plotutil.Color(i)
		p.Add(line, points)
		p.Legend.Add(c.name, line, points)
	}
	name := "sizes-" + s.driver.Name() + ".svg"
	return name, p.Save(18*vg.Centimeter, 10*vg.Centimeter, filepath.Join(dir, name))
}
