package erofs

import (
	"archive/tar"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzFlatten feeds arbitrary bytes as two layers. Whatever they are: no
// panic, and an image that is made can be read by another implementation.
func FuzzFlatten(f *testing.F) {
	seeds := [][]entry{
		{},
		{file("a", "1"), dir("d", 0o755), symlink("l", "d"), hardlink("h", "a"), file("l/x", "2")},
		{whiteout(".wh.a"), whiteout("d/.wh..wh..opq"), file("d", "3")},
		{file("../x", "1")},
		{symlink("a", "b"), symlink("b", "a"), file("a/c", "1")},
		{file("block", strings.Repeat("b", BlockSize+1)), symlink("long", strings.Repeat("l/", 2000)), file("x", "").With(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "value"}
		})},
	}
	for _, a := range seeds {
		for _, b := range seeds {
			f.Add(archive(f, a...), archive(f, b...))
		}
	}
	limits := Limits{Bytes: 1 << 20, Files: 200, MetaBytes: 1 << 20, Depth: 20, XattrBytes: 8 << 10}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		path := filepath.Join(t.TempDir(), "out")
		if _, err := flatten(t.Context(), path, Options{Limits: limits}, a, b); err != nil {
			return
		}
		if _, err := readTree(path); err != nil {
			t.Fatalf("cannot read the image back: %v", err)
		}
	})
}
