package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Policy says what GC may take.
type Policy struct {
	// MaxBytes is how much snapshots may use in the backend. Beyond it, the
	// least recently used go first. 0: no limit, only what no snapshot refers
	// to is freed.
	MaxBytes int64
	// Keep, when set, protects snapshots (and their ancestors).
	Keep func(ID, *Manifest) bool
	// Wait bounds the waiting for creations that are under way, without whose
	// end nothing can be told to be unused; default 1 minute. ErrBusy tells of
	// its end.
	Wait time.Duration
}

// GCStats tell what GC did.
type GCStats struct {
	Evicted []ID  // snapshots removed for the limit
	Freed   int   // objects removed
	Bytes   int64 // bytes they had
	Kept    int64 // bytes that remain, those of manifests included
	Over    int64 // bytes by which what must stay exceeds the limit
	// Foreign are the snapshots of another version, or with layers of one.
	// While there are any, snapshots are removed but no objects are freed.
	Foreign []ID
}

// GC frees what no snapshot refers to, and before that removes the least
// recently used snapshots for as long as more than the limit is used. Those
// pinned, kept by the policy, or with children that stay are never removed.
// Damaged manifests hold nothing; they are left for Verify and Delete. What a
// snapshot of another version holds cannot be told: while there is one, it and
// all that it mentions stay, and no layer or chunk is freed at all; that is
// left to a version that knows all snapshots of the store. New creations wait
// while it runs; reading waits only for the choice.
func (s *Store) GC(ctx context.Context, p Policy) (GCStats, error) {
	if p.Wait <= 0 {
		p.Wait = time.Minute
	}
	wctx, cancel := context.WithTimeout(ctx, p.Wait)
	l, err := s.acquireAfter(wctx, leaseSweep, ID{}, leaseCreate)
	cancel()
	if err != nil {
		return GCStats{}, fmt.Errorf("collecting snapshots: %w", err)
	}
	defer l.release(ctx)
	ctx, cancel = l.within(ctx)
	defer cancel()
	g := collector{s: s, p: p, lease: l, size: map[string]int64{}, refs: map[string]int{}, holds: map[ID]map[string]bool{}}
	if err := g.run(ctx); err != nil {
		return g.stats, fmt.Errorf("collecting snapshots: %w", err)
	}
	return g.stats, nil
}

type collector struct {
	s     *Store
	p     Policy
	lease *lease
	stats GCStats

	size  map[string]int64       // of every object that is counted
	refs  map[string]int         // snapshots that hold an object
	holds map[ID]map[string]bool // objects that a snapshot holds
	total int64                  // bytes of objects with references
}

func (g *collector) run(ctx context.Context) error {
	for _, dir := range []string{chunkDir, layerDir, manifestDir} {
		err := g.s.b.List(ctx, dir, func(i backend.Info) error { g.size[i.Name] = i.Size; return nil })
		if err != nil {
			return err
		}
	}
	if err := g.choose(ctx); err != nil {
		return err
	}
	return g.sweep(ctx)
}

// choose marks what snapshots hold and removes those beyond the limit. The
// evict lease is held for this only, since it keeps readers waiting.
func (g *collector) choose(ctx context.Context) error {
	l, err := g.s.acquire(ctx, leaseEvict, ID{})
	if err != nil {
		return err
	}
	defer l.release(ctx)
	all, err := g.s.List(ctx)
	if err != nil {
		return err
	}
	indexes := map[Digest]*index{}
	for _, e := range all {
		foreign := errors.Is(e.Err, ErrForeign)
		held := map[string]bool{manifestName(e.ID): true}
		if e.Manifest != nil {
			for _, ref := range e.Manifest.Layers {
				known, err := g.mark(ctx, ref.Digest, indexes, held)
				if err != nil {
					return err
				}
				foreign = foreign || !known
			}
		}
		if foreign {
			g.stats.Foreign = append(g.stats.Foreign, e.ID)
		}
		g.holds[e.ID] = held
		for name := range held {
			if g.refs[name]++; g.refs[name] == 1 {
				g.total += g.size[name]
			}
		}
	}
	if err := g.shrink(ctx, all); err != nil {
		return err
	}
	g.stats.Kept = g.total
	if len(g.stats.Foreign) > 0 {
		g.stats.Kept = 0
		for _, n := range g.size {
			g.stats.Kept += n
		}
	}
	if g.p.MaxBytes > 0 {
		g.stats.Over = max(0, g.total-g.p.MaxBytes)
	}
	return nil
}

// mark notes a layer, its ancestors and all their chunks. Below a damaged
// index nothing is known, so its snapshot cannot be restored anyhow; below a
// foreign one, which is reported, nothing is known here.
func (g *collector) mark(ctx context.Context, d Digest, indexes map[Digest]*index, held map[string]bool) (known bool, err error) {
	for depth := 0; !d.IsZero() && depth < maxDepth; depth++ {
		held[layerName(d)] = true
		ix, ok := indexes[d]
		if !ok {
			ix, err = g.s.readIndex(ctx, d)
			if errors.Is(err, ErrForeign) {
				return false, nil
			}
			if err != nil && !errors.Is(err, ErrDamaged) {
				return false, err
			}
			indexes[d] = ix
		}
		if ix == nil {
			return true, nil
		}
		for i := range ix.entries {
			if !ix.entries[i].digest.IsZero() {
				held[chunkName(ix.entries[i].digest)] = true
			}
		}
		d = ix.parent
	}
	return true, nil
}

func (g *collector) shrink(ctx context.Context, all []Entry) error {
	if g.p.MaxBytes <= 0 || g.total <= g.p.MaxBytes {
		return nil
	}
	pinned, err := g.s.pinned(ctx)
	if err != nil {
		return err
	}
	children := map[ID]int{}
	for _, e := range all {
		for _, id := range e.parents() {
			children[id]++
		}
	}
	slices.SortStableFunc(all, func(a, b Entry) int {
		return cmp.Compare(max(a.LastUse.UnixMilli(), a.created().UnixMilli()), max(b.LastUse.UnixMilli(), b.created().UnixMilli()))
	})
	gone := map[ID]bool{}
	for again := true; again && g.total > g.p.MaxBytes; {
		again = false
		for _, e := range all {
			if e.Manifest == nil || gone[e.ID] || slices.Contains(g.stats.Foreign, e.ID) || pinned[e.ID] || children[e.ID] > 0 ||
				g.p.Keep != nil && g.p.Keep(e.ID, e.Manifest) {
				continue
			}
			if err := g.s.evict(ctx, e.ID); err != nil {
				return err
			}
			g.forget(e.ID)
			g.stats.Evicted = append(g.stats.Evicted, e.ID)
			gone[e.ID] = true
			children[e.Manifest.Parent]--
			again = true // its parent may be free to go now, and older than the rest
			break
		}
	}
	return nil
}

func (g *collector) forget(id ID) {
	for name := range g.holds[id] {
		if g.refs[name]--; g.refs[name] == 0 {
			g.total -= g.size[name]
		}
	}
	delete(g.size, manifestName(id)) // is gone already
}

// sweep deletes what nobody refers to: layers before chunks, so that what
// remains after a crash is still only too much.
func (g *collector) sweep(ctx context.Context) error {
	var dead []string
	for name := range g.size {
		if g.refs[name] == 0 && len(g.stats.Foreign) == 0 && !strings.HasPrefix(name, manifestDir) {
			dead = append(dead, name)
		}
	}
	slices.SortFunc(dead, func(a, b string) int { return cmp.Compare(b, a) })
	first := slices.IndexFunc(dead, func(n string) bool { return strings.HasPrefix(n, chunkDir) })
	if first < 0 {
		first = len(dead)
	}
	for _, part := range slices.Concat(parts(dead[:first]), parts(dead[first:])) {
		if err := g.lease.check(); err != nil {
			return err
		}
		eg, ectx := errgroup.WithContext(ctx)
		eg.SetLimit(g.s.opts.Workers)
		for _, name := range part {
			eg.Go(func() error { return g.s.b.Delete(ectx, name) })
		}
		if err := eg.Wait(); err != nil {
			return err
		}
		for _, name := range part {
			g.stats.Freed++
			g.stats.Bytes += g.size[name]
		}
	}
	uses, err := g.s.uses(ctx)
	if err != nil {
		return err
	}
	for id, u := range uses { // notes about snapshots that are no more
		if g.holds[id] != nil && g.refs[manifestName(id)] > 0 {
			continue
		}
		for _, name := range u.names {
			if err := g.s.b.Delete(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func parts(names []string) [][]string { return slices.Collect(slices.Chunk(names, 256)) }
