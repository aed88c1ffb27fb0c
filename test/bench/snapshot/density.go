package main

import (
	"context"
	"errors"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// fits is the memory that clones shall fit into.
const fits = 8 << 30

// density is what idle restored clones of one function cost.
type density struct {
	driver string
	fn     *function
	n      int
	one    memory // of the first clone alone
	all    memory // of all n
	half   memory // of the first half, when there was only that
	// machine is by how much the machine's available memory fell from half of
	// the clones to all, bytes: it counts the kernel's part too.
	machine int64
}

// each is what one clone more costs: by PSS, by what its cgroup is charged
// with, and by what the machine lacks after.
func (d *density) each() (pss, charged, machine int64) {
	more := int64(d.n - d.n/2)
	return (d.all.pss - d.half.pss) / more, (d.all.charged - d.half.charged) / more, d.machine / more
}

func measureDensity(ctx context.Context, w *world, d sandbox.Driver, fn *function, n int) (out *density, err error) {
	image, remove, err := aSnapshot(ctx, w, d, fn)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	out = &density{driver: d.Name(), fn: fn, n: n}
	var boxes []*box
	defer func() {
		for _, b := range boxes {
			err = errors.Join(err, b.destroy(ctx))
		}
	}()
	var half int64
	for i := range n {
		b, err := w.newBox(ctx, d, fn)
		if err != nil {
			return out, err
		}
		boxes = append(boxes, b)
		if err := b.restore(ctx, sandbox.Restore{Image: image}); err != nil {
			return out, err
		}
		switch i + 1 {
		case 1:
			if out.one, _, err = settled(ctx, boxes); err != nil {
				return out, err
			}
		case n / 2:
			if out.half, half, err = settled(ctx, boxes); err != nil {
				return out, err
			}
		}
	}
	available := int64(0)
	if out.all, available, err = settled(ctx, boxes); err != nil {
		return out, err
	}
	out.machine = half - available
	return out, nil
}

// settled measures clones once they have been idle for a while: their PSS, and
// the memory that the machine has left.
func settled(ctx context.Context, boxes []*box) (all memory, available int64, err error) {
	select {
	case <-time.After(2 * time.Second):
	case <-ctx.Done():
		return all, 0, ctx.Err()
	}
	for _, b := range boxes {
		m, err := b.memory(ctx)
		if err != nil {
			return all, 0, err
		}
		all = all.plus(m)
	}
	available, err = procKB("/proc/meminfo", "MemAvailable")
	return all, available, err
}
