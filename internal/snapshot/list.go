package snapshot

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Entry is a snapshot in a list.
type Entry struct {
	ID       ID
	Manifest *Manifest // nil when Err is set
	LastUse  time.Time // zero: never noted
	Err      error     // why the manifest cannot be used
	// Labels are those of a foreign manifest as far as they can be read, to
	// tell whose it is; those of others are in the Manifest.
	Labels map[string]string

	mentions []ID // every digest in the text of a foreign manifest
}

// List returns all snapshots, the oldest first; those whose manifest is
// damaged or foreign come first, with their error.
func (s *Store) List(ctx context.Context) ([]Entry, error) {
	uses, err := s.uses(ctx)
	if err != nil {
		return nil, err
	}
	var found []backend.Info
	err = s.b.List(ctx, manifestDir, func(i backend.Info) error { found = append(found, i); return nil })
	if err != nil {
		return nil, fmt.Errorf("listing snapshots: %w", err)
	}
	read := make([]*Entry, len(found))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(listReads, s.opts.Workers))
	for n, i := range found {
		if id, err := ParseDigest(strings.TrimPrefix(i.Name, manifestDir)); err == nil { // else it is not ours
			g.Go(func() (err error) { read[n], err = s.entry(gctx, id, i.Size); return err })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("listing snapshots: %w", err)
	}
	var all []Entry
	for _, e := range read {
		if e != nil {
			e.LastUse = uses[e.ID].last
			all = append(all, *e)
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(a.created().Compare(b.created()), cmp.Compare(a.ID.Hex(), b.ID.Hex()))
	})
	return all, nil
}

// listReads is how many manifests are read at the same time, at least: it is
// waiting, not work.
const listReads = 8

// entry reads a manifest of a known size; nil if it is gone.
func (s *Store) entry(ctx context.Context, id ID, size int64) (*Entry, error) {
	name := manifestName(id)
	var data []byte
	err := error(&DamageError{Object: name, Kind: Corrupt, Reason: "too large"})
	if size <= MaxManifest {
		data, err = backend.ReadSized(ctx, s.b, name, size)
		err = damageOf(name, err)
	}
	e := &Entry{ID: id}
	var text []byte
	e.Manifest, text, e.Err = checkManifest(id, data, err)
	switch {
	case errors.Is(e.Err, ErrNotFound):
		return nil, nil //nolint:nilnil // deleted meanwhile
	case errors.Is(e.Err, ErrForeign):
		e.Labels, e.mentions = foreignLabels(text), mentioned(text)
	case e.Err != nil && !errors.Is(e.Err, ErrDamaged):
		return nil, e.Err
	}
	return e, nil
}

func (e Entry) created() time.Time {
	if e.Manifest == nil {
		return time.Time{}
	}
	return e.Manifest.Created
}

// parents are the snapshots that an entry may build on: any that a foreign one
// mentions.
func (e Entry) parents() []ID {
	if e.Manifest == nil {
		return e.mentions
	}
	return []ID{e.Manifest.Parent}
}

func (e Entry) buildsOn(id ID) bool { return slices.Contains(e.parents(), id) }

// foreignLabels reads the labels of a manifest of which no more is known than
// that it is JSON.
func foreignLabels(text []byte) map[string]string {
	var m struct {
		Labels map[string]string `json:"labels"`
	}
	if json.Unmarshal(text, &m) != nil {
		return nil
	}
	return m.Labels
}

var digests = regexp.MustCompile(`[0-9a-f]{64}`)

// mentioned finds all digests in a text.
func mentioned(text []byte) []ID {
	var all []ID
	for _, digits := range digests.FindAll(text, -1) {
		if d, err := ParseDigest(string(digits)); err == nil {
			all = append(all, d)
		}
	}
	return all
}

// Describe returns the manifest of a snapshot.
func (s *Store) Describe(ctx context.Context, id ID) (*Manifest, error) {
	return s.readManifest(ctx, id)
}

// Resolve finds the one snapshot whose ID begins with the given hexadecimal
// digits.
func (s *Store) Resolve(ctx context.Context, digits string) (ID, error) {
	digits = strings.TrimPrefix(digits, digestScheme)
	if digits == "" || strings.Trim(digits, "0123456789abcdef") != "" {
		return ID{}, fmt.Errorf("%w: %.80q are no hexadecimal digits", ErrNotFound, digits)
	}
	var found []ID
	err := s.b.List(ctx, manifestDir+digits, func(i backend.Info) error {
		if id, err := ParseDigest(strings.TrimPrefix(i.Name, manifestDir)); err == nil {
			found = append(found, id)
		}
		return nil
	})
	switch {
	case err != nil:
		return ID{}, fmt.Errorf("looking for snapshot %s: %w", digits, err)
	case len(found) == 0:
		return ID{}, fmt.Errorf("%w: %s", ErrNotFound, digits)
	case len(found) > 1:
		return ID{}, fmt.Errorf("%w: %s is the beginning of %d", ErrAmbiguous, digits, len(found))
	}
	return found[0], nil
}

// Delete removes a snapshot's manifest; GC frees what only it used. It is
// refused with ErrInUse while other snapshots have it for a parent or somebody
// holds a Pin on it.
func (s *Store) Delete(ctx context.Context, id ID) error {
	l, err := s.acquire(ctx, leaseEvict, ID{})
	if err != nil {
		return fmt.Errorf("deleting snapshot %s: %w", id, err)
	}
	defer l.release(ctx)
	if _, ok, err := s.have(ctx, manifestName(id)); err != nil || !ok {
		if err == nil {
			err = fmt.Errorf("%w: %s", ErrNotFound, id)
		}
		return err
	}
	pinned, err := s.pinned(ctx)
	if err != nil {
		return err
	}
	if pinned[id] {
		return fmt.Errorf("%w: %s is being read or built upon", ErrInUse, id)
	}
	all, err := s.List(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.buildsOn(id) {
			return fmt.Errorf("%w: %s is the parent of %s; delete that one first", ErrInUse, id, e.ID)
		}
	}
	return s.evict(ctx, id)
}

// evict removes a manifest and the notes about it.
func (s *Store) evict(ctx context.Context, id ID) error {
	if err := s.b.Delete(ctx, manifestName(id)); err != nil {
		return fmt.Errorf("deleting snapshot %s: %w", id, err)
	}
	uses, err := s.uses(ctx)
	if err != nil {
		return err
	}
	for _, name := range uses[id].names {
		if err := s.b.Delete(ctx, name); err != nil {
			return fmt.Errorf("deleting snapshot %s: its use: %w", id, err)
		}
	}
	return nil
}

func (s *Store) pinned(ctx context.Context) (map[ID]bool, error) {
	found, err := s.leases(ctx, leasePin)
	pins := map[ID]bool{}
	for _, l := range found {
		pins[l.of] = true
	}
	return pins, err
}

// Uses are noted at most this often per snapshot.
const touchEvery = time.Minute

type use struct {
	last  time.Time
	names []string
}

// Touch notes that a snapshot is used now; GC removes the least recently used
// first. The note is a one-byte object "uses/ID.MILLISECONDS".
func (s *Store) Touch(ctx context.Context, id ID) error {
	now := s.opts.Now()
	s.mu.Lock()
	last, ok := s.touched[id]
	if ok && now.Sub(last) < touchEvery {
		s.mu.Unlock()
		return nil
	}
	if len(s.touched) > 10_000 {
		clear(s.touched) // only notes more often than needed
	}
	s.touched[id] = now
	s.mu.Unlock()
	name := fmt.Sprintf("%s%s.%d", useDir, id.Hex(), now.UnixMilli())
	if err := s.put(ctx, name, []byte{'\n'}); err != nil {
		return err
	}
	return s.b.List(ctx, useDir+id.Hex()+".", func(i backend.Info) error {
		if _, at, ok := parseUse(i.Name); ok && at.UnixMilli() < now.UnixMilli() {
			return s.b.Delete(ctx, i.Name)
		}
		return nil
	})
}

func parseUse(name string) (ID, time.Time, bool) {
	digits, at, ok := strings.Cut(strings.TrimPrefix(name, useDir), ".")
	id, err := ParseDigest(digits)
	ms, err2 := strconv.ParseInt(at, 10, 64)
	return id, time.UnixMilli(ms), ok && err == nil && err2 == nil
}

func (s *Store) uses(ctx context.Context) (map[ID]use, error) {
	all := map[ID]use{}
	err := s.b.List(ctx, useDir, func(i backend.Info) error {
		if id, at, ok := parseUse(i.Name); ok {
			u := all[id]
			u.names = append(u.names, i.Name)
			if at.After(u.last) {
				u.last = at
			}
			all[id] = u
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading when snapshots were used: %w", err)
	}
	return all, nil
}
