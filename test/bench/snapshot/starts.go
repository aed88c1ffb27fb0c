package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Names of the ways to start, which the aims refer to.
const (
	wayBoot     = "boot"
	wayOnDemand = "pager, on demand"
	wayPager    = "pager + working set"
	onDiff      = "diff: "
	onPool      = "pool: "
)

// subject is one function on one driver, with its snapshots.
type subject struct {
	w      *world
	driver sandbox.Driver
	fn     *function
	dir    string
	facts  facts
	base   sandbox.Image
	diff   *sandbox.Image // nil if the driver has no layers
	ways   []*way
	lacks  []string // what the driver cannot do
	// noLayers leaves snapshots in layers out.
	noLayers bool
}

// facts are about the snapshots themselves.
type facts struct {
	save, saveDiff   time.Duration
	bytes, diffBytes int64 // on disk
	set              set
}

// measureStarts measures a function on a driver in all the ways that the
// driver has: boots and restores, or only restores whose snapshots are far away.
func measureStarts(ctx context.Context, w *world, d sandbox.Driver, fn *function, runs int, remote bool) (_ *subject, err error) {
	s := &subject{w: w, driver: d, fn: fn, dir: filepath.Join(w.dir, d.Name()+"-"+fn.name)}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	if d.Capabilities().Snapshot {
		if err := s.snapshots(ctx); err != nil {
			return nil, err
		}
	} else {
		s.lacks = append(s.lacks, "snapshots")
	}
	s.plan()
	if remote {
		s.ways = s.ways[1:]
		back, moved := s.moveFar()
		if moved != nil {
			return s, moved
		}
		defer func() { err = errors.Join(err, back()) }()
	}
	var turns []turn
	for _, x := range s.ways {
		if !remote {
			turns = append(turns, turn{x, false})
		}
		if x.restore != nil {
			turns = append(turns, turn{x, true})
		}
	}
	return s, s.measure(ctx, turns, runs)
}

// turn is a way with a hot or a cold page cache.
type turn struct {
	way  *way
	cold bool
}

func (s *subject) measure(ctx context.Context, turns []turn, runs int) error {
	// Taking turns, in a mixed order, so that a busy spell of the machine
	// hits all alike. That the function was booted and restored to make its
	// snapshots has brought programs into memory.
	for round := range runs {
		rand.Shuffle(len(turns), func(i, j int) { turns[i], turns[j] = turns[j], turns[i] })
		for _, t := range turns {
			got, err := s.one(ctx, t.way, t.cold)
			if err != nil {
				return fmt.Errorf("%s, run %d: %w", t.way.name, round, err)
			}
			if t.cold {
				t.way.cold = append(t.way.cold, got)
			} else {
				t.way.hot = append(t.way.hot, got)
			}
		}
	}
	return nil
}

// snapshots makes all snapshots and working sets that the driver is capable
// of. The function has answered one request before each is made.
func (s *subject) snapshots(ctx context.Context) (err error) {
	s.base = sandbox.Image{Dirs: []string{filepath.Join(s.dir, "base")}}
	err = s.with(ctx, func(b *box) error {
		if err := b.boot(ctx); err != nil {
			return err
		}
		s.facts.save, err = b.save(ctx, s.base.Dirs[0], false)
		return err
	})
	if err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	files, err := filesOf(s.base)
	if err != nil {
		return err
	}
	if s.facts.bytes, err = diskBytes(files); err != nil {
		return err
	}
	if !s.driver.Capabilities().OnDemandMemory {
		s.lacks = append(s.lacks, "recording of working sets")
	} else if s.facts.set, err = s.record(ctx, &s.base, "/", s.base.Dirs[0]+".ws"); err != nil {
		return err
	}
	if s.noLayers {
		return nil
	}
	if !s.driver.Capabilities().LayeredSnapshot {
		s.lacks = append(s.lacks, "snapshots in layers")
		return nil
	}
	return s.layer(ctx)
}

// layer makes a diff on the base, and its working set.
func (s *subject) layer(ctx context.Context) (err error) {
	dir := filepath.Join(s.dir, "diff")
	err = s.with(ctx, func(b *box) error {
		if err := b.restore(ctx, sandbox.Restore{Image: s.base}); err != nil {
			return err
		}
		s.facts.saveDiff, err = b.save(ctx, dir, true)
		return err
	})
	if err != nil {
		return fmt.Errorf("make a diff: %w", err)
	}
	files, err := filesOf(sandbox.Image{Dirs: []string{dir}})
	if err != nil {
		return err
	}
	if s.facts.diffBytes, err = diskBytes(files); err != nil {
		return err
	}
	s.diff = &sandbox.Image{Dirs: append([]string{dir}, s.base.Dirs...)}
	if s.driver.Capabilities().OnDemandMemory {
		_, err = s.record(ctx, s.diff, "/", dir+".ws")
	}
	return err
}

// set is a recorded working set.
type set struct {
	pages, zero int
	bytes       int64 // of its file, on disk
}

// record records what a request to an image needs, in a file, as its working set.
func (s *subject) record(ctx context.Context, i *sandbox.Image, request, file string) (_ set, err error) {
	err = s.with(ctx, func(b *box) error {
		b.path = request
		if err := b.restore(ctx, sandbox.Restore{Image: *i, Record: true}); err != nil {
			return err
		}
		r, ok := b.sb.(sandbox.Recorder)
		if !ok {
			return errors.New("the sandbox is no Recorder")
		}
		return r.Recorded(ctx, file)
	})
	if err != nil {
		return set{}, fmt.Errorf("record the working set: %w", err)
	}
	recorded, err := pager.OpenWorkingSet(file, false)
	if err != nil {
		return set{}, err
	}
	var out set
	out.pages, out.zero = recorded.Pages()
	if err := recorded.Close(); err != nil {
		return set{}, err
	}
	i.WorkingSet = file
	out.bytes, err = diskBytes([]string{file})
	return out, err
}

// one measures one start.
func (s *subject) one(ctx context.Context, x *way, cold bool) (t timing, err error) {
	err = s.with(ctx, func(b *box) error {
		b.path = x.path
		if x.restore == nil {
			defer func() { t = b.t }()
			return b.boot(ctx)
		}
		files, err := filesOf(x.restore.Image)
		if err != nil {
			return err
		}
		if cold {
			var resident float64
			if resident, err = makeCold(files); err != nil {
				return err
			}
			x.resident = max(x.resident, resident)
		} else if resident, err := makeHot(files); err != nil {
			return err
		} else if resident < 0.999 {
			return fmt.Errorf("only %.1f %% of the snapshot fits into the page cache", 100*resident)
		}
		defer func() { t = b.t }()
		return b.restore(ctx, *x.restore)
	})
	return t, err
}

// with runs fn with a new box, and frees it.
func (s *subject) with(ctx context.Context, fn func(*box) error) error {
	return s.w.with(ctx, s.driver, s.fn, fn)
}

func (w *world) with(ctx context.Context, d sandbox.Driver, f *function, fn func(*box) error) error {
	b, err := w.newBox(ctx, d, f)
	if err != nil {
		return err
	}
	err = fn(b)
	if err != nil {
		if out := b.tail(); out != "" {
			err = fmt.Errorf("%w; the function printed: %s", err, out)
		}
	}
	return errors.Join(err, b.destroy(ctx))
}
