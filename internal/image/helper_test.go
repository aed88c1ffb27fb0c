package image

import (
	"archive/tar"
	"bytes"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skep-dev/skep/internal/image/erofs/erofstest"

	stdlog "log"
	"runtime"
)

func openStore(t testing.TB, change ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "images"), Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	for _, f := range change {
		f(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// layerOf makes a layer of tar entries. gzip is go-containerregistry's.
func layerOf(t testing.TB, mediaType types.MediaType, entries ...erofstest.Entry) v1.Layer {
	t.Helper()
	data := erofstest.Archive(t, entries...)
	if mediaType == types.OCIUncompressedLayer {
		return static.NewLayer(data, mediaType)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, tarball.WithMediaType(mediaType))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// makeImage makes an image for this machine of one layer for each list.
func makeImage(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: []string{"/app"}, Cmd: []string{"--serve"}, Env: []string{"A=b"}, User: "1000:1000", WorkingDir: "/work",
			ExposedPorts: map[string]struct{}{"8080/tcp": {}, "443/tcp": {}}, Labels: map[string]string{"l": "v"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		t.Fatal(err)
	}
	return img
}

func simpleImage(t testing.TB, content string) v1.Image {
	t.Helper()
	return makeImage(t, layerOf(t, types.OCILayer, erofstest.File("app", content), erofstest.File("old", "x")),
		layerOf(t, types.OCILayer, erofstest.Whiteout(".wh.old"), erofstest.File("etc/passwd", "root:x:0:0\n")))
}

// wantFiles checks the content of a root file system.
func wantFiles(t testing.TB, img *Image, want ...string) {
	t.Helper()
	got, err := erofstest.ReadTree(img.Rootfs)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("files of %s:\n got %.300q\nwant %.300q", img.Ref, got, want)
	}
}

func simpleFiles(content string) []string {
	return []string{"app=" + content, "etc", "etc/passwd=root:x:0:0\n"}
}

// registryServer is a registry that is not ours.
func registryServer(t testing.TB) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(ggcrregistry.New(ggcrregistry.Logger(stdlog.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return srv
}

func hostOf(srv *httptest.Server) string { return strings.TrimPrefix(srv.URL, "http://") }

func push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func wantTmpEmpty(t testing.TB, s *Store) {
	t.Helper()
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left in tmp: %v, %v", entries, err)
	}
}

func writeTar(t testing.TB, path string, files map[string][]byte) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for n, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeSave writes an image as `docker save` does.
func writeSave(t testing.TB, path string, img v1.Image) {
	t.Helper()
	ref, err := name.NewTag("saved:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, ref, img); err != nil {
		t.Fatal(err)
	}
}
