package erofs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// BenchmarkFlatten flattens 150 MB in 7000 files, about a Debian base image
// with Python.
func BenchmarkFlatten(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	pool := make([]byte, 4<<20)
	for i := range pool {
		pool[i] = byte(rnd.Uint32())
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range 7000 {
		size := rnd.IntN(20_000)
		if i%100 == 0 {
			size = rnd.IntN(len(pool))
		}
		data := pool[rnd.IntN(len(pool)-size+1):][:size]
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/%d/%d", i%300, i), Mode: 0o644, Size: int64(size)}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(buf.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := flatten(b.Context(), filepath.Join(b.TempDir(), "out"), Options{}, buf.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}
