package snapshots

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/saved"
	"github.com/skep-dev/skep/internal/snapshot"
)

// A copy may hold only what changed since another one, its first parent; that
// one and its own parents then stay, out of use, as long as the copy. What
// comes from the store is always whole.

// maxChain bounds how many layers the store makes one memory of.
const maxChain = 8

// base makes what is to be written to l a difference from what is used, and
// reports whether that can be.
func (c *Catalog) base(l *local, on *Use) bool {
	if on == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if on.l.dead {
		return false // its record says so already
	}
	l.rec.Parents = append([]string{on.l.name}, on.l.rec.Parents...)
	return true
}

// adoptParents counts a copy among the children of its parents. The caller
// holds mu.
func (c *Catalog) adoptParents(l *local) {
	for _, p := range c.parents(l) {
		p.children++
		if p.dead && !p.rec.Whole { // it went out of use while the child was made
			p.rec.Whole, p.rec.Superseded = true, true
			if err := c.record(c.ctx, p); err != nil {
				c.cfg.Log.Warn("keep a snapshot's files for another", "error", err)
			}
		}
	}
}

// parents are the copies that l is a difference from, the nearest first; nil
// for one that is not there. The caller holds mu.
func (c *Catalog) parents(l *local) []*local {
	var out []*local
	for _, name := range l.rec.Parents {
		if p := c.copies[name]; p != nil {
			out = append(out, p)
		}
	}
	return out
}

// orphan ends that a copy is a child: parents that nobody else wants go, too.
// The caller holds mu.
func (c *Catalog) orphan(l *local) {
	for _, p := range c.parents(l) {
		p.children--
		if p.dead && p.users == 0 && p.children == 0 {
			c.bury(p)
		}
	}
}

// storedBase is what a copy is a difference from, in the store.
type storedBase struct {
	id     snapshot.ID
	memory snapshot.Digest
}

// storedBase finds the snapshot that a copy can be stored as a difference from;
// zero if there is none. If its memory is stored already, that is its parent.
func (c *Catalog) storedBase(ctx context.Context, l *local, m snapshot.Manifest) storedBase {
	if _, ok := m.Layer(sandbox.FileMemory); ok || len(l.rec.Parents) == 0 {
		return storedBase{id: m.Parent}
	}
	c.mu.Lock()
	var base storedBase
	if p := c.copies[l.rec.Parents[0]]; p != nil {
		ref, _ := p.rec.Manifest.Layer(sandbox.FileMemory)
		base = storedBase{p.rec.Snapshot, ref.Digest}
	}
	c.mu.Unlock()
	if base.id.IsZero() || base.memory.IsZero() || !c.extendable(ctx, base.memory) {
		return storedBase{}
	}
	return base
}

// ancestors are the snapshots in the store that one is a difference from.
func (e *entry) ancestors(m *snapshot.Manifest) map[snapshot.ID]bool {
	all := map[snapshot.ID]bool{}
	for at := m.Parent; !at.IsZero() && !all[at]; {
		all[at] = true
		next := snapshot.ID{}
		for _, s := range e.stored {
			if s.id == at {
				next = s.m.Parent
			}
		}
		at = next
	}
	return all
}

// writeMemory stores the memory of a copy that is a difference: as such, if
// the store has what it differs from, or else whole.
func (c *Catalog) writeMemory(ctx context.Context, cr *snapshot.Creation, l *local, base storedBase) (snapshot.LayerRef, error) {
	c.mu.Lock()
	dirs := c.image(l).Dirs
	c.mu.Unlock()
	if base.memory.IsZero() {
		return writeFlat(ctx, cr, dirs)
	}
	return writeFile(ctx, cr, sandbox.FileMemory, filepath.Join(dirs[0], sandbox.FileMemory),
		snapshot.LayerOptions{Parent: base.memory, Inherit: true})
}

// extendable tells whether a layer can have another one on top.
func (c *Catalog) extendable(ctx context.Context, d snapshot.Digest) bool {
	depth, err := c.cfg.Store.Depth(ctx, d)
	return err == nil && depth < maxChain
}

// writeFlat stores the memory that folders make up together.
func writeFlat(ctx context.Context, cr *snapshot.Creation, dirs []string) (ref snapshot.LayerRef, err error) {
	memory, err := saved.OpenMemory(dirs)
	if err != nil {
		return ref, err
	}
	defer memory.Close() //nolint:errcheck // read only
	var extents []snapshot.Extent
	for _, f := range memory.Files {
		x, err := snapshot.FileExtents(f)
		if err != nil {
			return ref, err
		}
		extents = append(extents, x...)
	}
	src, err := memory.Whole()
	if err != nil {
		return ref, err
	}
	return cr.WriteLayer(ctx, sandbox.FileMemory, src, src.Size(), snapshot.LayerOptions{Extents: mergeExtents(extents)})
}

// mergeExtents sorts extents and joins those that touch.
func mergeExtents(all []snapshot.Extent) []snapshot.Extent {
	slices.SortFunc(all, func(a, b snapshot.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	out := []snapshot.Extent{} // none at all is not the same as nil
	for _, x := range all {
		if n := len(out); n > 0 && x.Offset <= out[n-1].End() {
			out[n-1].Length = max(out[n-1].Length, x.End()-out[n-1].Offset)
			continue
		}
		out = append(out, x)
	}
	return out
}
