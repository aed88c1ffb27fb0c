package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapshot/backend"
	"github.com/skep-dev/skep/internal/snapshot/backend/memory"
)

func testManifest(parent ID) Manifest {
	return Manifest{
		Version: ManifestVersion, Created: time.Now().UTC(), Parent: parent,
		Requirements: Requirements{
			Driver: Component{"qemu", "7.2"}, Kernel: "6.1", Agent: "a", RootImage: "r",
			CPU:         CPU{Arch: "amd64", Model: "m", Features: []string{"avx", "avx2"}},
			MemoryBytes: 1 << 20, VCPUs: 1,
		},
		Labels: map[string]string{"function": "hello"},
	}
}

func newStore(t testing.TB) (*Store, *memory.Backend) {
	b := memory.New()
	return New(b, Options{}), b
}

// create makes a snapshot with one layer "memory".
func create(t testing.TB, s *Store, parent ID, img []byte, o LayerOptions) (ID, LayerRef) {
	t.Helper()
	c, err := s.Begin(t.Context(), testManifest(parent))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort(t.Context())
	ref, err := c.WriteLayer(t.Context(), "memory", bytes.NewReader(img), int64(len(img)), o)
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id, ref
}

func readLayer(t testing.TB, s *Store, d Digest) ([]byte, error) {
	t.Helper()
	l, err := s.OpenLayer(t.Context(), d)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	got := make([]byte, l.Size())
	_, err = l.ReadAt(got, 0)
	return got, err
}

func wantImage(t testing.TB, s *Store, d Digest, want []byte) {
	t.Helper()
	got, err := readLayer(t, s, d)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the layer reads as another image than was written")
	}
}

// randomImage has pages of noise, of text, and of zeros.
func randomImage(r *rand.Rand, size int) []byte {
	img := make([]byte, size)
	for off := 0; off < size; off += DefaultPage {
		fillPage(r, img[off:min(off+DefaultPage, size)])
	}
	return img
}

func fillPage(r *rand.Rand, p []byte) {
	clear(p)
	switch r.IntN(3) {
	case 0:
		for i := range p {
			p[i] = byte(r.Uint32())
		}
	case 1:
		copy(p, strings.Repeat(string(rune('a'+r.IntN(26)))+"bees ", len(p)/6))
	}
}

func objects(t testing.TB, b backend.Backend, prefix string) []string {
	t.Helper()
	var names []string
	err := b.List(context.Background(), prefix, func(i backend.Info) error { names = append(names, i.Name); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// replace damages an object.
func replace(t testing.TB, b backend.Backend, name string, change func([]byte) []byte) {
	t.Helper()
	data, err := backend.ReadAll(t.Context(), b, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if data = change(bytes.Clone(data)); data == nil {
		return
	}
	if err := b.Put(t.Context(), name, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
}

func gc(t testing.TB, s *Store, p Policy) GCStats {
	t.Helper()
	st, err := s.GC(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

var _ io.ReaderAt = (*Layer)(nil)

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}
