package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// results is all that a run has measured.
type results struct {
	o          options
	began      time.Time
	took       time.Duration
	load       [2]string // /proc/loadavg at the begin and at the end
	disk       disk
	drivers    []sandbox.Driver
	subjects   []*subject
	sizes      []*sizes
	far        []*subject // with snapshots that are far away
	bursts     []*bursts
	densities  []*density
	cycles     []*cycles
	pagerTable string
	failed     []error // what could not be measured
}

// pooled is how many network links of each kind are made ahead, so that
// making them is no part of what is measured.
const pooled = 4

func run(ctx context.Context, o options) (err error) {
	// The launchers of sandboxes look at their parent's threads: the main one
	// stays where it is.
	runtime.LockOSThread()
	if o.runs < 1 || o.cycles < 1 || o.most < 1 || o.rounds < 1 || o.clones < 2 {
		return errors.New("all counts must be positive, -clones at least 2")
	}
	if os.Geteuid() != 0 {
		return errors.New("sandboxes need root")
	}
	r := &results{o: o, began: time.Now()}
	r.load[0] = loadAverage()
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	w, err := newWorld(ctx, cache, map[sandbox.LinkKind]int{sandbox.LinkVeth: pooled, sandbox.LinkTAP: pooled})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(ctx)) }()
	if o.pagerTable != "" {
		b, err := os.ReadFile(o.pagerTable)
		if err != nil {
			return err
		}
		r.pagerTable = strings.TrimSpace(string(b))
	}
	fns := functions()
	fns = slices.DeleteFunc(fns, func(f *function) bool {
		return len(o.functions) > 0 && !slices.Contains(o.functions, f.name)
	})
	for _, f := range fns {
		progress("building %s", f.title)
		release, err := f.build(ctx, w, func(step string) { progress("  %s", step) })
		if err != nil {
			return err
		}
		defer release()
	}
	if r.disk, err = measureDisk(w.dir); err != nil {
		return err
	}
	for _, name := range o.drivers {
		d, err := w.newDriver(name, o.runsc)
		if err != nil {
			return err
		}
		r.drivers = append(r.drivers, d)
	}
	for _, d := range r.drivers {
		r.measure(ctx, w, d, fns)
		if ctx.Err() != nil { // what there is is worth something
			r.failed = append(r.failed, fmt.Errorf("stopped before its end: %w", context.Cause(ctx)))
			break
		}
	}
	r.took = time.Since(r.began)
	r.load[1] = loadAverage()
	if err := r.write(); err != nil {
		return err
	}
	return errors.Join(r.failed...)
}

// measure takes all sections for one driver. What fails is noted, and the
// next one tried.
func (r *results) measure(ctx context.Context, w *world, d sandbox.Driver, fns []*function) {
	try := func(what string, fn func() error) {
		if ctx.Err() != nil {
			return
		}
		progress("%s: %s", d.Name(), what)
		if err := fn(); err != nil {
			err = fmt.Errorf("%s: %s: %w", d.Name(), what, err)
			progress("FAILED: %v", err)
			r.failed = append(r.failed, err)
		}
	}
	small := func(f *function) bool { return f.name == fnHello || f.name == fnPython }
	if r.o.wants(secStarts) {
		for _, f := range fns {
			try("starts of "+f.title, func() error {
				s, err := measureStarts(ctx, w, d, f, r.o.runs, false)
				if s != nil {
					r.subjects = append(r.subjects, s)
				}
				return err
			})
		}
	}
	if !d.Capabilities().Snapshot {
		progress("%s has no snapshots", d.Name())
		return
	}
	for _, f := range fns {
		if r.o.wants(secSizes) && f.name == fnBig && d.Capabilities().OnDemandMemory {
			try("working sets by size", func() error {
				x, err := measureSizes(ctx, w, d, f, r.o.runs)
				if x != nil {
					r.sizes = append(r.sizes, x)
				}
				return err
			})
		}
		if r.o.wants(secRemote) && f.name == fnPython {
			try("snapshots far away, "+f.title, func() error {
				x, err := measureStarts(ctx, w, d, f, r.o.runs, true)
				if x != nil {
					r.far = append(r.far, x)
				}
				return err
			})
		}
		if r.o.wants(secConcurrent) && small(f) {
			try("restores at the same time of "+f.title, func() error {
				b, err := measureBursts(ctx, w, d, f, &r.o)
				if b != nil {
					r.bursts = append(r.bursts, b)
				}
				return err
			})
		}
		if r.o.wants(secDensity) && small(f) {
			try("idle clones of "+f.title, func() error {
				x, err := measureDensity(ctx, w, d, f, r.o.clones)
				if x != nil {
					r.densities = append(r.densities, x)
				}
				return err
			})
		}
		if r.o.wants(secCycles) && f.name == fnHello {
			try(fmt.Sprintf("%d restores and kills of %s", r.o.cycles, f.title), func() error {
				c, err := measureCycles(ctx, w, d, f, r.o.cycles)
				if c != nil {
					r.cycles = append(r.cycles, c)
				}
				return err
			})
		}
	}
}

// aSnapshot makes a snapshot of a function for the sections that need just
// one, with a working set if the driver can record one. remove frees it.
func aSnapshot(ctx context.Context, w *world, d sandbox.Driver, fn *function) (image sandbox.Image, remove func() error, err error) {
	dir, err := os.MkdirTemp(w.dir, "snapshot-")
	if err != nil {
		return image, nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	s := &subject{w: w, driver: d, fn: fn, dir: dir, noLayers: true}
	if err := s.snapshots(ctx); err != nil {
		return image, nil, errors.Join(err, remove())
	}
	return s.base, remove, nil
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	fields := strings.Fields(string(b))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
