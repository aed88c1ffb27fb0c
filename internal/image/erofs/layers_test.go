package erofs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLayers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		layers [][]entry
		want   string
	}{
		{"nothing", nil, ""},
		{"empty layer", [][]entry{{}}, ""},
		{"implicit parents", [][]entry{{file("a/b/c", "1")}}, "a a/b a/b/c=1"},
		{"later entry of a layer wins", [][]entry{{file("a", "1"), file("a", "2")}}, "a=2"},
		{"upper layer wins", [][]entry{{file("a", "1")}, {file("a", "2")}}, "a=2"},
		{"names are cleaned", [][]entry{{file("./a//b/./c", "1"), file("/d", "2")}}, "a a/b a/b/c=1 d=2"},
		{"directory keeps content", [][]entry{{file("d/a", "1")}, {dir("d", 0o700), file("d/b", "2")}}, "d d/a=1 d/b=2"},
		{"file replaces directory", [][]entry{{file("d/a/b", "1")}, {file("d", "2")}}, "d=2"},
		{"directory replaces file", [][]entry{{file("d", "1")}, {dir("d", 0o755), file("d/a", "2")}}, "d d/a=2"},
		{"implicit directory replaces file", [][]entry{{file("d", "1")}, {file("d/a", "2")}}, "d d/a=2"},
		{"symlink replaces directory", [][]entry{{file("d/a", "1")}, {symlink("d", "e")}}, "d->e"},
		{"directory replaces symlink", [][]entry{{symlink("d", "e"), dir("e", 0o755)}, {dir("d", 0o755), file("d/a", "1")}}, "d d/a=1 e"},
		{"parent symlink is followed", [][]entry{{dir("usr/lib", 0o755), symlink("lib", "usr/lib")}, {file("lib/a", "1")}}, "lib->usr/lib usr usr/lib usr/lib/a=1"},
		{"absolute parent symlink stays in the image", [][]entry{{symlink("x/l", "/y"), file("x/l/a", "1")}}, "x x/l->/y y y/a=1"},
		{"symlink above the root stays in the image", [][]entry{{symlink("l", "../../../etc"), file("l/a", "1")}}, "etc etc/a=1 l->../../../etc"},
		{"whiteout of a file", [][]entry{{file("a", "1"), file("b", "2")}, {whiteout(".wh.a")}}, "b=2"},
		{"whiteout of a directory", [][]entry{{file("d/a", "1"), file("b", "2")}, {whiteout(".wh.d")}}, "b=2"},
		{"whiteout of nothing", [][]entry{{file("a", "1")}, {whiteout("x/y/.wh.z"), whiteout(".wh.q")}}, "a=1"},
		{"whiteout spares its own layer, after", [][]entry{{file("a", "1")}, {file("a", "2"), whiteout(".wh.a")}}, "a=2"},
		{"whiteout spares its own layer, before", [][]entry{{file("a", "1")}, {whiteout(".wh.a"), file("a", "2")}}, "a=2"},
		{"whiteout of a directory that its layer makes anew", [][]entry{{file("d/a", "1")}, {file("d/b", "2"), whiteout(".wh.d")}}, "d d/b=2"},
		{"whiteout in the first layer", [][]entry{{file("a", "1"), whiteout(".wh.a")}}, "a=1"},
		{"whiteout of a symlink, not of its target", [][]entry{{file("a", "1"), symlink("l", "a")}, {whiteout(".wh.l")}}, "a=1"},
		{"whiteout through a parent symlink", [][]entry{{file("d/a", "1"), symlink("l", "d")}, {whiteout("l/.wh.a")}}, "d l->d"},
		{"opaque", [][]entry{{file("d/a", "1"), file("d/e/f", "2")}, {file("d/b", "3"), whiteout("d/.wh..wh..opq")}}, "d d/b=3"},
		{"opaque spares deeper files of its layer", [][]entry{{file("d/e/f", "1")}, {file("d/e/g", "2"), whiteout("d/.wh..wh..opq")}}, "d d/e d/e/g=2"},
		{"opaque root", [][]entry{{file("a", "1")}, {whiteout(".wh..wh..opq"), file("b", "2")}}, "b=2"},
		{"opaque only once", [][]entry{{file("d/a", "1")}, {dir("d", 0o755), whiteout("d/.wh..wh..opq")}, {file("d/b", "2")}}, "d d/b=2"},
		{"aufs bookkeeping", [][]entry{{file("a", "1"), dir(".wh..wh.plnk", 0o700), file(".wh..wh.aufs", "")}}, "a=1"},
		{"hard link", [][]entry{{file("a", "1"), hardlink("d/b", "a")}}, "a=1 d d/b=1"},
		{"hard link into a lower layer", [][]entry{{file("a", "1")}, {hardlink("b", "a")}}, "a=1 b=1"},
		{"hard link outlives its target", [][]entry{{file("a", "1")}, {hardlink("b", "a")}, {whiteout(".wh.a")}}, "b=1"},
		{"hard link outlives a replaced target", [][]entry{{file("a", "1"), hardlink("b", "a")}, {file("a", "2")}}, "a=2 b=1"},
		{"hard link to itself", [][]entry{{file("a", "1"), hardlink("a", "./a")}}, "a=1"},
		{"hard link through a parent symlink", [][]entry{{file("d/a", "1"), symlink("l", "d"), hardlink("b", "l/a")}}, "b=1 d d/a=1 l->d"},
		{"removed and made again", [][]entry{{file("a", "1")}, {whiteout(".wh.a")}, {file("a", "3")}}, "a=3"},
		{"names around dot and dot-dot", [][]entry{{file("d/-", "1"), file("d/.a", "2"), file("d/...", "3"), file("d/!", "4")}}, "d d/!=4 d/-=1 d/...=3 d/.a=2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, archive(t, l...))
			}
			got, err := readTree(mustFlatten(t, layers...))
			if err != nil {
				t.Fatal(err)
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
		})
	}
}

func TestHostile(t *testing.T) {
	t.Parallel()
	link := func(n int) []entry {
		var all []entry
		for i := range n {
			all = append(all, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1)))
		}
		return append(all, file("l0/x", "1"))
	}
	small := Limits{Bytes: 1000, Files: 50, MetaBytes: 64 << 10, Depth: 10, XattrBytes: 100}
	for _, c := range []struct {
		name    string
		entries []entry
		raw     []byte
		want    error
	}{
		{name: "parent in path", entries: []entry{file("../etc/passwd", "x")}, want: ErrBadLayer},
		{name: "parent inside path", entries: []entry{file("a/../../b", "x")}, want: ErrBadLayer},
		{name: "parent as name", entries: []entry{dir("a/..", 0o755)}, want: ErrBadLayer},
		{name: "parent in link target", entries: []entry{file("a", ""), hardlink("b", "../a")}, want: ErrBadLayer},
		{name: "parent by whiteout", entries: []entry{whiteout("a/.wh...")}, want: ErrBadLayer},
		{name: "self by whiteout", entries: []entry{whiteout("a/.wh.."), whiteout(".wh.")}, want: ErrBadLayer},
		{name: "root is a file", entries: []entry{file("./", "x").With(func(h *tar.Header) { h.Name = "." })}, want: ErrBadLayer},
		{name: "hard link to nothing", entries: []entry{hardlink("b", "a")}, want: ErrBadLayer},
		{name: "hard link to root", entries: []entry{hardlink("b", "/")}, want: ErrBadLayer},
		{name: "hard link to a directory", entries: []entry{dir("a", 0o755), hardlink("a/b", "a")}, want: ErrBadLayer},
		{name: "symlink loop as parent", entries: []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "1")}, want: ErrBadLayer},
		{name: "too many symlinks", entries: link(45), want: ErrBadLayer},
		{name: "empty symlink", entries: []entry{symlink("a", "")}, want: ErrBadLayer},
		{name: "long symlink", entries: []entry{symlink("a", strings.Repeat("x", 4096))}, want: ErrBadLayer},
		{name: "long name", entries: []entry{file(strings.Repeat("n", 256), "")}, want: ErrBadLayer},
		{name: "long name by symlink", entries: []entry{symlink("l", strings.Repeat("n", 256)), file("l/x", "")}, want: ErrBadLayer},
		{name: "long path", entries: []entry{file(strings.Repeat("n/", 2100)+"x", "")}, want: ErrBadLayer},
		{name: "device number", entries: []entry{{Header: tar.Header{Typeflag: tar.TypeChar, Name: "d", Devmajor: 4096}}}, want: ErrBadLayer},
		{name: "unknown type", entries: []entry{{Header: tar.Header{Typeflag: 'Z', Name: "z"}}}, want: ErrBadLayer},
		{name: "owner", entries: []entry{file("a", "").With(func(h *tar.Header) { h.Uid = 1 << 33 })}, want: ErrBadLayer},
		{name: "not a tar", raw: bytes.Repeat([]byte("not a tar"), 1000), want: ErrBadLayer},
		{name: "truncated", raw: archive(t, file("a", strings.Repeat("x", 900)))[:1536+400], want: ErrBadLayer},
		{name: "too many bytes", entries: []entry{file("a", strings.Repeat("x", 600)), file("b", strings.Repeat("x", 600))}, want: ErrLimit},
		{name: "too many bytes in one name", entries: []entry{file("a", strings.Repeat("x", 600)), file("a", strings.Repeat("x", 600))}, want: ErrLimit},
		{name: "too many files", entries: func() (all []entry) {
			for i := range 51 {
				all = append(all, file(fmt.Sprint(i), ""))
			}
			return all
		}(), want: ErrLimit},
		{name: "too deep", entries: []entry{file(strings.Repeat("d/", 11)+"x", "")}, want: ErrLimit},
		{name: "too many bytes of metadata", entries: func() (all []entry) {
			for i := range 30 {
				all = append(all, symlink(fmt.Sprint(i), strings.Repeat("x", 3000)))
			}
			return all
		}(), want: ErrLimit},
		{name: "large attribute", entries: []entry{file("a", "").With(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 100)}
		})}, want: ErrLimit},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			layer := c.raw
			if layer == nil {
				layer = archive(t, c.entries...)
			}
			_, err := flatten(t.Context(), filepath.Join(t.TempDir(), "out"), Options{Limits: small}, layer)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			t.Log(err)
		})
	}
}

// A header may promise terabytes: nothing is read or written for it.
func TestHugeSparseFileRefused(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "huge", Size: 8 << 40, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out")
	if _, err := flatten(t.Context(), path, Options{}, buf.Bytes()); !errors.Is(err, ErrLimit) {
		t.Fatalf("error %v, want %v", err, ErrLimit)
	}
}

func TestOverlayAttributesAreDropped(t *testing.T) {
	t.Parallel()
	got, err := parseXattrs(map[string]string{
		"SCHILY.xattr.trusted.overlay.opaque": "y",
		"SCHILY.xattr.user.overlay.redirect":  "/",
		"SCHILY.xattr.security.selinux":       "label",
		"SCHILY.xattr.user.kept":              "1",
		"path":                                "x",
	}, 1000)
	if err != nil || len(got) != 1 || got[0].name != "kept" {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestDeterministic(t *testing.T) {
	t.Parallel()
	layers := [][]byte{
		archive(t, everything()...),
		archive(t, whiteout("etc/.wh.passwd"), file("big", "smaller"), file("many", "now a file"), file("new", strings.Repeat("y", 9000))),
	}
	first, err := os.ReadFile(mustFlatten(t, layers...))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		again, err := os.ReadFile(mustFlatten(t, layers...))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, again) {
			t.Fatal("the same layers gave different images")
		}
	}
	other, err := os.ReadFile(mustFlatten(t, layers[0]))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(first, other) {
		t.Fatal("different layers gave the same image")
	}
}

// Data of removed files must be neither readable in the image nor on disk.
func TestRemovedDataIsPunchedOut(t *testing.T) {
	t.Parallel()
	secret := strings.Repeat("secret", 200_000)
	path := mustFlatten(t, archive(t, file("a", secret), file("keep", "kept data")), archive(t, whiteout(".wh.a")))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("secret")) {
		t.Error("removed data is still in the image")
	}
	if !bytes.Contains(data, []byte("kept data")) {
		t.Error("data that was not removed is gone")
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := flatten(ctx, filepath.Join(t.TempDir(), "out"), Options{}, archive(t, file("a", "1"))); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want %v", err, context.Canceled)
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

// An error of the source must stay recognisable: it is not the layer's fault.
func TestSourceError(t *testing.T) {
	t.Parallel()
	broken := errors.New("network down")
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layer := archive(t, file("a", strings.Repeat("x", 5000)))
	err = NewBuilder(f, Options{}).AddLayer(t.Context(), io.MultiReader(bytes.NewReader(layer[:2000]), failingReader{broken}))
	if !errors.Is(err, broken) || errors.Is(err, ErrBadLayer) {
		t.Fatalf("error %v, want %v alone", err, broken)
	}
}
