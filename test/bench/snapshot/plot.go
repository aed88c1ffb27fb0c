package main

import (
	"fmt"
	"image/color"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// Published by Ustiugov et al., ASPLOS 2021 (REAP), figure on concurrent
// loading of helloworld on 48 processors: mean time until an instance has
// answered, by the number of instances loaded at the same time.
var (
	reapN       = []int{1, 2, 4, 8, 16, 32, 64}
	reapPlain   = []float64{232, 405, 442, 745, 1256, 2787, 6435} // ms
	reapREAP    = []float64{60, 96, 149, 185, 522, 730, 1063}     // ms
	reapMachine = 48.0                                            // processors
)

// plotStarts draws how the times of one function's starts are distributed.
func plotStarts(s *subject, dir string) (string, error) {
	p := plot.New()
	p.Title.Text = title(s) + ": from nothing to the first response"
	p.X.Label.Text = "milliseconds (logarithmic)"
	p.Y.Label.Text = "share of starts"
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.LogTicks{Prec: -1}
	p.Y.Min, p.Y.Max = 0, 1
	p.Legend.Top, p.Legend.Left = false, false
	p.Add(plotter.NewGrid())
	for i, x := range s.ways {
		for _, c := range []struct {
			of     []timing
			suffix string
			dashes []vg.Length
		}{{x.hot, ", hot", nil}, {x.cold, ", cold", []vg.Length{vg.Points(3), vg.Points(2)}}} {
			if len(c.of) == 0 || x.pooled() {
				continue
			}
			l, err := plotter.NewLine(cdf(pick(c.of, (*timing).total)))
			if err != nil {
				return "", err
			}
			l.StepStyle = plotter.PostStep
			l.Color, l.Dashes, l.Width = plotutil.Color(i), c.dashes, vg.Points(1.2)
			p.Add(l)
			p.Legend.Add(x.name+c.suffix, l)
		}
	}
	name := fmt.Sprintf("starts-%s-%s.svg", s.driver.Name(), s.fn.name)
	return name, p.Save(22*vg.Centimeter, 11*vg.Centimeter, filepath.Join(dir, name))
}

// cdf is the share of all that took no longer, in milliseconds.
func cdf(all []time.Duration) plotter.XYs {
	s := slices.Clone(all)
	slices.Sort(s)
	out := plotter.XYs{{X: float64(s[0]) / 1e6, Y: 0}}
	for i, d := range s {
		out = append(out, plotter.XY{X: float64(d) / 1e6, Y: float64(i+1) / float64(len(s))})
	}
	return out
}

// plotBursts draws restores a second and processor against their number.
func plotBursts(all []*bursts, dir string) (string, error) {
	p := plot.New()
	p.Title.Text = "Restores at the same time"
	p.X.Label.Text = "restores at the same time"
	p.Y.Label.Text = fmt.Sprintf("restores/s per processor (of %d; REAP of %.0f)", runtime.NumCPU(), reapMachine)
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.TickerFunc(func(_, _ float64) []plot.Tick {
		var ticks []plot.Tick
		for _, n := range reapN {
			ticks = append(ticks, plot.Tick{Value: float64(n), Label: fmt.Sprint(n)})
		}
		return ticks
	})
	p.Y.Min = 0
	p.Legend.Top = true
	p.Add(plotter.NewGrid())
	add := func(name string, xys plotter.XYs, c color.Color, dashes []vg.Length) error {
		line, points, err := plotter.NewLinePoints(xys)
		if err != nil {
			return err
		}
		line.Color, points.Color, line.Dashes = c, c, dashes
		p.Add(line, points)
		p.Legend.Add(name, line, points)
		return nil
	}
	for i, b := range all {
		var xys plotter.XYs
		for _, x := range b.sizes {
			xys = append(xys, plotter.XY{X: float64(x.n), Y: x.perCore()})
		}
		if len(xys) == 0 {
			continue
		}
		if err := add(b.driver+", "+b.fn.title, xys, plotutil.Color(i), nil); err != nil {
			return "", err
		}
	}
	dashes := []vg.Length{vg.Points(4), vg.Points(3)}
	for i, c := range []struct {
		name string
		ms   []float64
	}{{"REAP, as published", reapREAP}, {"its plain snapshots", reapPlain}} {
		var xys plotter.XYs
		for j, n := range reapN {
			xys = append(xys, plotter.XY{X: float64(n), Y: float64(n) / c.ms[j] * 1000 / reapMachine})
		}
		if err := add(c.name, xys, color.Gray{Y: uint8(60 + 80*i)}, dashes); err != nil { //nolint:gosec // 60 or 140
			return "", err
		}
	}
	const name = "concurrent.svg"
	return name, p.Save(18*vg.Centimeter, 10*vg.Centimeter, filepath.Join(dir, name))
}
