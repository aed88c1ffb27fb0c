package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/skep-dev/skep/internal/image/erofs/erofstest"
)

// makeLayout writes an OCI layout of images with the given names.
func makeLayout(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		var opts []layout.Option
		if n != "" {
			opts = append(opts, layout.WithAnnotations(map[string]string{annotationRef: n}))
		}
		img := mutate.ConfigMediaType(mutate.MediaType(simpleImage(t, "content of "+n), types.OCIManifestSchema1), types.OCIConfigJSON)
		if err := p.AppendImage(img, opts...); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func tarOf(t testing.TB, dir string) string {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, _ := filepath.Rel(dir, path)
			files["./"+rel], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "layout.tar")
	writeTar(t, path, files)
	return path
}

func gzipOf(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".gz", buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path + ".gz"
}

// dockerSave is an archive as `docker save` wrote it before version 25.
func dockerSave(t testing.TB, tag string) string {
	t.Helper()
	img := makeImage(t, layerOf(t, types.OCIUncompressedLayer, erofstest.File("app", "content of "+tag), erofstest.File("old", "x")),
		layerOf(t, types.OCIUncompressedLayer, erofstest.Whiteout(".wh.old"), erofstest.File("etc/passwd", "root:x:0:0\n")))
	path := filepath.Join(t.TempDir(), "save.tar")
	ref, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, ref, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestImport(t *testing.T) {
	t.Parallel()
	one := makeLayout(t, "hello:v1")
	save := dockerSave(t, "hello:v1")
	for _, c := range []struct {
		name, path, ref string
		wantRef, files  string
		err             error
	}{
		{"layout", one, "", "hello:v1", "hello:v1", nil},
		{"layout, renamed", one, "other", "other:latest", "hello:v1", nil},
		{"layout tar", tarOf(t, one), "", "hello:v1", "hello:v1", nil},
		{"layout tar, gzipped", gzipOf(t, tarOf(t, one)), "", "hello:v1", "hello:v1", nil},
		{"layout without name", makeLayout(t, ""), "x", "x:latest", "", nil},
		{"layout without any name", makeLayout(t, ""), "", "", "", ErrBadReference},
		{"layout of two, chosen", makeLayout(t, "a:v1", "b:v1"), "b:v1", "b:v1", "b:v1", nil},
		{"layout of two", makeLayout(t, "a:v1", "b:v1"), "", "", "", ErrBadReference},
		{"docker save", save, "", "hello:v1", "hello:v1", nil},
		{"docker save, renamed", save, "other:v2", "other:v2", "hello:v1", nil},
		{"docker save, gzipped", gzipOf(t, save), "", "hello:v1", "hello:v1", nil},
		{"no such file", filepath.Join(one, "nope"), "x", "", "", os.ErrNotExist},
		{"directory without index", t.TempDir(), "x", "", "", ErrNotImage},
		{"not an archive", filepath.Join(one, "index.json"), "x", "", "", ErrNotImage},
		{"bad name", one, "UPPER", "", "", ErrBadReference},
		{"device", "/dev/null", "x", "", "", ErrNotImage},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			img, err := s.Import(t.Context(), c.path, c.ref)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			wantTmpEmpty(t, s)
			if err != nil {
				t.Log(err)
				return
			}
			if img.Ref != c.wantRef {
				t.Errorf("ref %q, want %q", img.Ref, c.wantRef)
			}
			wantFiles(t, img, simpleFiles("content of "+c.files)...)
		})
	}
}

func TestImportHostile(t *testing.T) {
	t.Parallel()
	dir := makeLayout(t, "a:v1")
	write := func(files map[string]string) string {
		path := filepath.Join(t.TempDir(), "x.tar")
		data := map[string][]byte{}
		for k, v := range files {
			data[k] = []byte(v)
		}
		writeTar(t, path, data)
		return path
	}
	escaping := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "index.json"), filepath.Join(escaping, "index.json")); err != nil {
		t.Fatal(err)
	}
	indexOf := func(digest string) string {
		b, _ := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{"mediaType": types.OCIManifestSchema1, "digest": digest, "size": 1}}})
		return string(b)
	}
	for name, path := range map[string]string{
		"symlink out of the directory": escaping,
		"digest with path":             write(map[string]string{"index.json": indexOf("sha256:../../etc/passwd")}),
		"digest of missing blob":       write(map[string]string{"index.json": indexOf("sha256:" + strings.Repeat("a", 64))}),
		"index is not JSON":            write(map[string]string{"index.json": "{"}),
		"index too large":              write(map[string]string{"index.json": strings.Repeat(" ", maxManifestBytes+1)}),
		"docker manifest is not JSON":  write(map[string]string{"manifest.json": "{}"}),
		"docker config missing":        write(map[string]string{"manifest.json": `[{"Config":"../../../etc/passwd","RepoTags":["a:b"],"Layers":[]}]`}),
		"docker layers missing":        write(map[string]string{"manifest.json": `[{"Config":"c","RepoTags":["a:b"],"Layers":["x"]}]`, "c": `{"rootfs":{"diff_ids":[]}}`}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			img, err := s.Import(t.Context(), path, "x")
			if err == nil {
				t.Fatalf("got %+v", img)
			}
			t.Log(err)
			wantTmpEmpty(t, s)
		})
	}
}

func TestImportIndexInLayout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: simpleImage(t, "inner")})
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	img, err := openStore(t).Import(t.Context(), dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, img, simpleFiles("inner")...)
}
