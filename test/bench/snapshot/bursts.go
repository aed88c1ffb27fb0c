package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// bursts are restores at the same time, of one function on one driver, in the
// driver's own mode, nothing prepared but the network.
type bursts struct {
	driver   string
	fn       *function
	set      bool // with a working set
	sizes    []*burst
	profiled string // what took the processor time of a largest burst, from perf
}

// burst is n restores at the same time, some rounds of it.
type burst struct {
	n            int
	all          []time.Duration // each restore's
	last         []time.Duration // each round's, until the last has answered
	busy, kernel float64         // processor time of the machine in all rounds, seconds
	own          float64         // of that this program's, and each sandbox's until its answer
	// around, if set, runs the restores, but not their end.
	around func(restores func()) error
}

// perCore is restores a second and processor.
func (b *burst) perCore() float64 {
	return float64(b.n) / median(b.last).Seconds() / float64(runtime.NumCPU())
}

// cost is the processor time of one restore: the sandbox's and this program's.
func (b *burst) cost() time.Duration {
	return time.Duration(b.own / float64(len(b.all)) * float64(time.Second))
}

// used is the share of the processors that was busy.
func (b *burst) used() float64 {
	var sum time.Duration
	for _, d := range b.last {
		sum += d
	}
	return b.busy / sum.Seconds() / float64(runtime.NumCPU())
}

func measureBursts(ctx context.Context, w *world, d sandbox.Driver, fn *function, o *options) (out *bursts, err error) {
	image, remove, err := aSnapshot(ctx, w, d, fn)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	out = &bursts{driver: d.Name(), fn: fn, set: image.WorkingSet != ""}
	r := sandbox.Restore{Image: image}
	if err := new(burst).add(ctx, w, d, fn, r, 1); err != nil { // warm up
		return nil, err
	}
	for n := 1; n <= o.most; n *= 2 {
		progress("  %d at once", n)
		x := &burst{n: n}
		for range o.rounds {
			if err := x.add(ctx, w, d, fn, r, n); err != nil {
				return out, fmt.Errorf("%d at once: %w", n, err)
			}
		}
		out.sizes = append(out.sizes, x)
	}
	if o.perf != "" {
		x := &burst{around: func(restores func()) (err error) {
			out.profiled, err = profile(ctx, o.perf, d.Name()+"-"+fn.name, restores)
			return err
		}}
		err = x.add(ctx, w, d, fn, r, o.most)
	}
	return out, err
}

// add takes one more round.
func (b *burst) add(ctx context.Context, w *world, d sandbox.Driver, fn *function, r sandbox.Restore, n int) (err error) {
	boxes := make([]*box, n)
	defer func() {
		for _, x := range boxes {
			if x != nil {
				err = errors.Join(err, x.destroy(ctx))
			}
		}
	}()
	for i := range boxes {
		if boxes[i], err = w.newBox(ctx, d, fn); err != nil {
			return err
		}
		boxes[i].unweighed = true
	}
	own, err := ownCPUTime()
	if err != nil {
		return err
	}
	busy, kernel, err := cpuTime()
	if err != nil {
		return err
	}
	errs := make([]error, n)
	took := make([]time.Duration, n)
	used := make([]time.Duration, n)
	var began time.Time
	restores := func() {
		began = time.Now()
		var wg sync.WaitGroup
		for i := range boxes {
			wg.Go(func() {
				errs[i] = boxes[i].restore(ctx, r)
				took[i] = time.Since(began)
				if errs[i] == nil { // until its answer: what it does after is no part of a restore
					var st sandbox.Stats
					st, errs[i] = boxes[i].sb.Stats(ctx)
					used[i] = st.CPUTime
				}
			})
		}
		wg.Wait()
	}
	if b.around == nil {
		restores()
	} else if err := b.around(restores); err != nil {
		return err
	}
	b.last = append(b.last, time.Since(began))
	b.all = append(b.all, took...)
	busyAfter, kernelAfter, err := cpuTime()
	b.busy += busyAfter - busy
	b.kernel += kernelAfter - kernel
	errs = append(errs, err)
	ownAfter, err := ownCPUTime()
	errs = append(errs, err)
	b.own += ownAfter - own
	for _, d := range used {
		b.own += d.Seconds()
	}
	return errors.Join(errs...)
}
