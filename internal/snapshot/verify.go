package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Report is what Verify found out.
type Report struct {
	ID       ID
	Layers   int
	Chunks   int   // distinct ones that were read
	Bytes    int64 // of their plain content
	Problems []*DamageError
}

// OK tells whether the snapshot is whole.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Foreign tells whether it cannot be judged whole or damaged: something of it
// is of another version.
func (r *Report) Foreign() bool {
	return slices.ContainsFunc(r.Problems, func(p *DamageError) bool { return p.Kind == Foreign })
}

// Verify reads everything that a snapshot consists of and reports all that is
// damaged, truncated, missing or foreign. It reads the backend, not the cache
// before it, which keeps nothing of what is damaged. The error is only for what
// kept it from finding out, ErrNotFound among it.
func (s *Store) Verify(ctx context.Context, id ID) (*Report, error) {
	s = s.direct()
	v := verifier{s: s, r: &Report{ID: id}, chunks: map[Digest]int{}, layers: map[Digest]bool{}}
	m, err := s.readManifest(ctx, id)
	if err != nil {
		return v.r, v.note(err)
	}
	for _, ref := range m.Layers {
		if err := v.layer(ctx, ref); err != nil {
			return v.r, fmt.Errorf("verifying snapshot %s: layer %s: %w", id, ref.Role, err)
		}
	}
	if err := v.content(ctx); err != nil {
		return v.r, fmt.Errorf("verifying snapshot %s: %w", id, err)
	}
	return v.r, nil
}

type verifier struct {
	s      *Store
	mu     sync.Mutex
	r      *Report
	chunks map[Digest]int // plain length
	layers map[Digest]bool
}

// note makes damage a problem of the report; other errors are returned.
func (v *verifier) note(err error) error {
	if d := (*DamageError)(nil); errors.As(err, &d) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.r.Problems = append(v.r.Problems, d)
		return nil
	}
	return err
}

func (v *verifier) layer(ctx context.Context, ref LayerRef) error {
	chain, err := v.s.readChain(ctx, ref.Digest)
	if err != nil {
		return v.note(err)
	}
	if chain[0].size != ref.Size {
		return v.note(&DamageError{Object: layerName(ref.Digest), Kind: Corrupt,
			Reason: fmt.Sprintf("it has %d bytes, the manifest says %d", chain[0].size, ref.Size)})
	}
	d := ref.Digest
	for _, ix := range chain {
		if !v.layers[d] {
			v.layers[d] = true
			v.r.Layers++
			for i := range ix.entries {
				if e := &ix.entries[i]; !e.digest.IsZero() {
					v.chunks[e.digest] = e.data.count() * ix.pageSize
				}
			}
		}
		d = ix.parent
	}
	return nil
}

func (v *verifier) content(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.s.opts.Workers)
	for d, n := range v.chunks {
		g.Go(func() error {
			if _, err := v.s.readChunk(ctx, d, n); err != nil {
				return v.note(err)
			}
			v.mu.Lock()
			defer v.mu.Unlock()
			v.r.Chunks++
			v.r.Bytes += int64(n)
			return nil
		})
	}
	return g.Wait()
}

// Quarantine takes a damaged snapshot out of use: it removes the objects that
// the report names, so that a later creation of the same content stores them
// anew instead of relying on them, and the snapshot's manifest. Other snapshots
// that share the objects are then missing them, and so are found damaged too.
// A snapshot of another version is refused with ErrForeign: others may use it.
func (s *Store) Quarantine(ctx context.Context, r *Report) error {
	if r.OK() {
		return nil
	}
	if r.Foreign() {
		return fmt.Errorf("snapshot %s is not removed: %w", r.ID, ErrForeign)
	}
	l, err := s.acquireAfter(ctx, leaseSweep, ID{}, leaseCreate)
	if err != nil {
		return fmt.Errorf("removing damaged snapshot %s: %w", r.ID, err)
	}
	defer l.release(ctx)
	errs := []error{s.evict(ctx, r.ID)}
	for _, p := range r.Problems {
		errs = append(errs, s.b.Delete(ctx, p.Object))
	}
	return errors.Join(errs...)
}
