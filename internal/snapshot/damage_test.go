package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/skep-dev/skep/internal/snapshot/backend"
	"github.com/skep-dev/skep/internal/snapshot/backend/memory"
)

// Whatever is done to whichever object, Verify tells and reading never gives
// other bytes than were written.
func TestDamageIsFound(t *testing.T) {
	img := randomImage(rand.New(rand.NewPCG(3, 3)), 3<<20+77)
	flip := func(at func(n int) int) func([]byte) []byte {
		return func(d []byte) []byte { d[at(len(d))] ^= 0x10; return d }
	}
	changes := map[string]func([]byte) []byte{
		"first bit":   flip(func(int) int { return 0 }),
		"codec bit":   flip(func(int) int { return 3 }),
		"header bit":  flip(func(int) int { return 5 }),
		"middle bit":  flip(func(n int) int { return n / 2 }),
		"last bit":    flip(func(n int) int { return n - 1 }),
		"truncated":   func(d []byte) []byte { return d[:len(d)-1] },
		"cut to one":  func(d []byte) []byte { return d[:1] },
		"cut in half": func(d []byte) []byte { return d[:len(d)/2] },
		"longer":      func(d []byte) []byte { return append(d, 0) },
		"garbage":     func(d []byte) []byte { return bytes.Repeat([]byte("?"), len(d)) },
		"missing":     func([]byte) []byte { return nil },
	}
	for _, dir := range []string{chunkDir, layerDir, manifestDir} {
		for name, change := range changes {
			t.Run(dir+name, func(t *testing.T) {
				s, b := newStore(t)
				base, ref := create(t, s, ID{}, img, LayerOptions{})
				changed := bytes.Clone(img)
				copy(changed[5000:], "changed")
				id, diff := create(t, s, base, changed, LayerOptions{Parent: ref.Digest})
				target := manifestName(id)
				if dir != manifestDir {
					target = objects(t, b, dir)[0]
				}
				replace(t, b, target, change)
				rep, err := s.Verify(t.Context(), id)
				if dir == manifestDir && name == "missing" {
					wantErr(t, err, ErrNotFound)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if rep.OK() || rep.Problems[0].Object != target {
					t.Fatalf("Verify found %v, want damage of %s", rep.Problems, target)
				}
				if kind := rep.Problems[0].Kind; name == "missing" && kind != Missing {
					t.Errorf("kind %s, want %s", kind, Missing)
				}
				if got, err := readLayer(t, s, diff.Digest); err == nil && !bytes.Equal(got, changed) {
					t.Error("other bytes were read, without an error")
				} else if err != nil && !errors.Is(err, ErrDamaged) {
					t.Errorf("reading: %v, want ErrDamaged", err)
				}
				if err := s.Quarantine(t.Context(), rep); err != nil {
					t.Fatal(err)
				}
				if _, again := create(t, s, ID{}, img, LayerOptions{}); again != ref {
					t.Error("the same image became another layer")
				}
				_, diff = create(t, s, ID{}, changed, LayerOptions{Parent: ref.Digest})
				wantImage(t, s, diff.Digest, changed)
			})
		}
	}
}

// ofVersion makes a copy of a snapshot of which something is a later version's,
// and returns its ID and all objects that it may be the only one to need.
func ofVersion(t *testing.T, s *Store, b *memory.Backend, what string) (ID, []string) {
	t.Helper()
	img := noise(77, 1<<20)
	id, ref := create(t, s, ID{}, img, LayerOptions{})
	needs := []string{layerName(ref.Digest), chunkName(DigestOf(img)), manifestName(id)}
	get := func(name string) []byte {
		data, err := backend.ReadAll(t.Context(), b, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	put := func(name string, data []byte) {
		if err := b.Put(t.Context(), name, bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	text := get(manifestName(id))
	switch what {
	case "manifest":
		text = bytes.Replace(text, []byte(`"version": 1`), []byte(`"version": 2, "secret": true`), 1)
	case "layer":
		table := get(layerName(ref.Digest))
		table[len(indexMagic)] = indexVersion + 1
		put(layerName(DigestOf(table)), table)
		text = bytes.Replace(text, []byte(ref.Digest.Hex()), []byte(DigestOf(table).Hex()), 1)
		needs = append(needs, layerName(DigestOf(table)))
	case "chunk":
		replace(t, b, chunkName(DigestOf(img)), func(d []byte) []byte { d[3] = codecZstd + 1; d[100] ^= 1; return d })
		return id, needs
	}
	other := DigestOf(text)
	put(manifestName(other), text)
	if err := s.Delete(t.Context(), id); err != nil && !errors.Is(err, ErrInUse) {
		t.Fatal(err)
	}
	needs[2] = manifestName(other)
	return other, needs
}

// What is a later version's is told, and nothing is done to it.
func TestOtherVersionIsLeftAlone(t *testing.T) {
	for _, what := range []string{"manifest", "layer", "chunk"} {
		t.Run(what, func(t *testing.T) {
			s, b := newStore(t)
			// Two of our own, one of which shall go for the limit.
			first, _ := create(t, s, ID{}, noise(1, 1<<20), LayerOptions{})
			create(t, s, ID{}, noise(2, 1<<20), LayerOptions{})
			id, needs := ofVersion(t, s, b, what)
			rep, err := s.Verify(t.Context(), id)
			if err != nil || rep.OK() || !rep.Foreign() {
				t.Fatalf("Verify: %+v, %v", rep, err)
			}
			wantErr(t, s.Quarantine(t.Context(), rep), ErrForeign)
			all, err := s.List(t.Context())
			if err != nil || len(all) != 3 {
				t.Errorf("List: %+v, %v", all, err)
			}
			if e := all[0]; what == "manifest" && (!errors.Is(e.Err, ErrForeign) || errors.Is(e.Err, ErrDamaged) || e.Labels["function"] != "hello") {
				t.Errorf("listed as %+v", e)
			}
			limit := int64(3 << 19)
			if what == "chunk" {
				limit += 1 << 20 // its size counts, for its layer can be read
			}
			st := gc(t, s, Policy{MaxBytes: limit, Keep: func(x ID, _ *Manifest) bool { return what == "chunk" && x == id }})
			if len(st.Evicted) != 1 || st.Evicted[0] != first {
				t.Errorf("evicted %v, want %s", st.Evicted, first)
			}
			// A chunk is not looked into; the others could need anything.
			if blind := what != "chunk"; blind != (len(st.Foreign) == 1) || blind != (st.Freed == 0) {
				t.Errorf("GC: %+v", st)
			}
			left := objects(t, b, "")
			for _, name := range needs {
				if !slices.Contains(left, name) {
					t.Errorf("%s is gone", name)
				}
			}
			// When it has gone, all is known again.
			if err := s.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if st := gc(t, s, Policy{}); len(st.Foreign) > 0 || len(objects(t, b, chunkDir)) != 1 {
				t.Errorf("without it: %+v, %v", st, objects(t, b, chunkDir))
			}
		})
	}
}

// A snapshot that a later version's may build on stays.
func TestOtherVersionHoldsItsParent(t *testing.T) {
	s, b := newStore(t)
	parent, _ := create(t, s, ID{}, noise(1, 1<<20), LayerOptions{})
	text := fmt.Appendf(nil, `{"version": 9, "from": ["%s"]}`, parent.Hex())
	if err := b.Put(t.Context(), manifestName(DigestOf(text)), bytes.NewReader(text), int64(len(text))); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Delete(t.Context(), parent), ErrInUse)
	if st := gc(t, s, Policy{MaxBytes: 1}); len(st.Evicted) != 0 || st.Over == 0 {
		t.Errorf("GC: %+v", st)
	}
}
