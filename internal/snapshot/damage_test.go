package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
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

func TestOtherVersionIsForeignAndStopsGC(t *testing.T) {
	s, b := newStore(t)
	create(t, s, ID{}, []byte("x"), LayerOptions{})
	future := []byte(fmt.Sprintf("{\n  \"version\": %d\n}", ManifestVersion+1))
	id := DigestOf(future)
	if err := b.Put(t.Context(), manifestName(id), bytes.NewReader(future), int64(len(future))); err != nil {
		t.Fatal(err)
	}
	rep, err := s.Verify(t.Context(), id)
	if err != nil || rep.OK() || rep.Problems[0].Kind != Foreign {
		t.Errorf("Verify: %+v, %v", rep, err)
	}
	var v *VersionError
	if _, err := s.GC(t.Context(), Policy{}); !errors.As(err, &v) {
		t.Errorf("GC: %v, want a VersionError", err)
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 2 || all[0].Err == nil {
		t.Errorf("List: %+v, %v", all, err)
	}
}
