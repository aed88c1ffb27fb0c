package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"slices"
)

// DiffStats compare the layers of one role in two snapshots.
type DiffStats struct {
	Role         string
	SizeA, SizeB int64 // bytes of the images; 0 where a snapshot lacks the role
	// Pages by content: the same non-zero content in both, different content
	// in both, non-zero in one only.
	Same, Changed, OnlyA, OnlyB int64
	PageSize                    int
	// SharedBytes are plain bytes in chunks that both images use; ABytes and
	// BBytes those in all chunks that each uses.
	SharedBytes, ABytes, BBytes int64
}

// Diff compares two snapshots, role by role, in a's order and then b's. Only
// pages whose place in the store differs are read.
func (s *Store) Diff(ctx context.Context, a, b ID) ([]DiffStats, error) {
	var ms [2]*Manifest
	for i, id := range []ID{a, b} {
		pin, err := s.Pin(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("comparing snapshots: %w", err)
		}
		defer pin.Release(ctx)
		ms[i] = pin.Manifest
	}
	var roles []string
	for _, m := range ms {
		for _, l := range m.Layers {
			if !slices.Contains(roles, l.Role) {
				roles = append(roles, l.Role)
			}
		}
	}
	var all []DiffStats
	for _, role := range roles {
		st, err := s.diffRole(ctx, role, ms)
		if err != nil {
			return nil, fmt.Errorf("comparing %s of %s and %s: %w", role, a, b, err)
		}
		all = append(all, st)
	}
	return all, nil
}

func (s *Store) diffRole(ctx context.Context, role string, ms [2]*Manifest) (DiffStats, error) {
	st := DiffStats{Role: role}
	var ls [2]*Layer
	for i, m := range ms {
		ref, ok := m.Layer(role)
		if !ok {
			continue
		}
		l, err := s.OpenLayer(ctx, ref.Digest)
		if err != nil {
			return st, err
		}
		defer l.Close()
		ls[i] = l
		st.PageSize = l.PageSize()
	}
	var plain [2]map[Digest]int64
	for i, l := range ls {
		plain[i] = map[Digest]int64{}
		if l == nil {
			continue
		}
		for chunk := range l.chain[0].chunks() {
			if err := ctx.Err(); err != nil {
				return st, err
			}
			if !l.mentioned(chunk) {
				continue
			}
			for page := range l.chain[0].pagesIn(chunk) {
				if e, _ := l.source(chunk, page); e != nil {
					plain[i][e.digest] = int64(e.data.count() * st.PageSize)
				}
			}
		}
	}
	for d, n := range plain[0] {
		st.ABytes += n
		if plain[1][d] > 0 {
			st.SharedBytes += n
		}
	}
	for _, n := range plain[1] {
		st.BBytes += n
	}
	return st, comparePages(ctx, ls, &st)
}

func comparePages(ctx context.Context, ls [2]*Layer, st *DiffStats) error {
	if ls[0] != nil && ls[1] != nil && ls[0].PageSize() != ls[1].PageSize() {
		return fmt.Errorf("pages of %d and %d bytes cannot be compared", ls[0].PageSize(), ls[1].PageSize())
	}
	for i, size := range []*int64{&st.SizeA, &st.SizeB} {
		if ls[i] != nil {
			*size = ls[i].Size()
		}
	}
	c := comparison{ls: ls, st: st, bufs: [2][]byte{make([]byte, st.PageSize), make([]byte, st.PageSize)}}
	for off, end := int64(0), max(st.SizeA, st.SizeB); off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		// Chunks may be of different sizes: up to the end of the first one.
		next, mentioned := end, false
		for _, l := range ls {
			if l != nil && off < l.Size() {
				chunk := off / l.chain[0].chunkBytes()
				next = min(next, (chunk+1)*l.chain[0].chunkBytes())
				mentioned = mentioned || l.mentioned(int(chunk))
			}
		}
		if mentioned {
			if err := c.pages(ctx, off, next); err != nil {
				return err
			}
		}
		off = next
	}
	return nil
}

type comparison struct {
	ls   [2]*Layer
	st   *DiffStats
	bufs [2][]byte
}

// pages compares those from off to end.
func (c *comparison) pages(ctx context.Context, off, end int64) error {
	page, st, bufs := int64(c.st.PageSize), c.st, c.bufs
	for ; off < end; off += page {
		var e [2]*entry
		var rank [2]int
		for i, l := range c.ls {
			if l != nil && off < l.Size() {
				chunk := l.chain[0].chunkBytes()
				e[i], rank[i] = l.source(int(off/chunk), int(off%chunk/page))
			}
		}
		switch {
		case e[0] == nil && e[1] == nil:
		case e[1] == nil:
			st.OnlyA++
		case e[0] == nil:
			st.OnlyB++
		case e[0].digest == e[1].digest && rank[0] == rank[1]:
			st.Same++
		default:
			for i, l := range c.ls {
				if err := l.readPadded(ctx, bufs[i], off); err != nil {
					return err
				}
			}
			if bytes.Equal(bufs[0], bufs[1]) {
				st.Same++
			} else {
				st.Changed++
			}
		}
	}
	return nil
}
