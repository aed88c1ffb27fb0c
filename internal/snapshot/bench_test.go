package snapshot

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/skep-dev/skep/internal/snapshot/backend/local"
)

// A third each of noise, text and zeros, into and out of a local folder.
func benchImage() []byte { return randomImage(rand.New(rand.NewPCG(1, 2)), 128<<20) }

func benchStore(b *testing.B) *Store {
	dir, err := local.Open(b.TempDir(), local.Options{Volatile: Volatile})
	if err != nil {
		b.Fatal(err)
	}
	return New(dir, Options{})
}

func BenchmarkWrite(b *testing.B) {
	img := benchImage()
	b.SetBytes(int64(len(img)))
	for b.Loop() {
		b.StopTimer()
		s := benchStore(b)
		b.StartTimer()
		create(b, s, ID{}, img, LayerOptions{})
	}
}

func BenchmarkMaterialize(b *testing.B) {
	img, s := benchImage(), benchStore(b)
	_, ref := create(b, s, ID{}, img, LayerOptions{})
	f := tempFile(b)
	b.SetBytes(int64(len(img)))
	for b.Loop() {
		l, err := s.OpenLayer(b.Context(), ref.Digest)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Materialize(b.Context(), f); err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

func BenchmarkReadAt(b *testing.B) {
	img, s := benchImage(), benchStore(b)
	_, ref := create(b, s, ID{}, img, LayerOptions{})
	l, err := s.OpenLayer(b.Context(), ref.Digest)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	p := make([]byte, len(img))
	b.SetBytes(int64(len(img)))
	for b.Loop() {
		if _, err := l.ReadAt(p, 0); err != nil {
			b.Fatal(err)
		}
	}
	if !bytes.Equal(p, img) {
		b.Fatal("read something else")
	}
}
