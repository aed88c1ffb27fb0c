package install_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/install"
)

var release = firecracker.Release{Version: "v1.2.3"}

type member struct {
	name, content string
	kind          byte
}

func archive(t *testing.T, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Size: int64(len(m.content)), Mode: 0o600, Typeflag: m.kind}
		if m.kind == tar.TypeSymlink {
			h.Linkname, h.Size, m.content = m.content, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func good(t *testing.T) []byte {
	return archive(t,
		member{"release-v1.2.3-x86_64/", "", tar.TypeDir},
		member{"../../etc/passwd", "hostile", tar.TypeReg},
		member{"release-v1.2.3-x86_64/jailer-v1.2.3-x86_64", "the jailer", tar.TypeReg},
		member{"./release-v1.2.3-x86_64/firecracker-v1.2.3-x86_64", "the monitor", tar.TypeReg},
		member{"release-v1.2.3-x86_64/LICENSE", "text", tar.TypeReg},
	)
}

// install serves content, with the checksum of sum, and installs it.
func setup(t *testing.T, content, sum []byte) (string, error) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(content) }))
	defer s.Close()
	r := release
	h := sha256.Sum256(sum)
	r.SHA256 = hex.EncodeToString(h[:])
	dir := filepath.Join(t.TempDir(), "skep")
	return dir, install.Programs{Release: r, Dir: dir, URL: s.URL, HTTP: s.Client()}.Install(t.Context())
}

func TestInstall(t *testing.T) {
	a := good(t)
	dir, err := setup(t, a, a)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"firecracker": "the monitor", "jailer": "the jailer"} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 3 { // and the record
		t.Errorf("the folder has %v, %v", files, err)
	}
}

func TestFile(t *testing.T) {
	a := good(t)
	path := filepath.Join(t.TempDir(), "a.tgz")
	if err := os.WriteFile(path, a, 0o600); err != nil {
		t.Fatal(err)
	}
	r := release
	h := sha256.Sum256(a)
	r.SHA256 = hex.EncodeToString(h[:])
	p := install.Programs{Release: r, Dir: t.TempDir(), Archive: path}
	if s := p.Status(); s.Current || len(s.Missing) != 2 {
		t.Errorf("before it was installed: %+v", s)
	}
	if err := p.Install(t.Context()); err != nil || !p.Status().Current {
		t.Errorf("Install: %v", err)
	}
}

func TestRefused(t *testing.T) {
	a := good(t)
	link := archive(t, member{"release-v1.2.3-x86_64/jailer-v1.2.3-x86_64", "/bin/sh", tar.TypeSymlink})
	other := archive(t, member{"README", "x", tar.TypeReg})
	for name, c := range map[string]struct {
		content, sum []byte
		want         string
	}{
		"another archive": {other, a, "checksum"},
		"cut off":         {a[:len(a)-10], a, "checksum"},
		"a link":          {link, link, "is not a file"},
		"not an archive":  {[]byte("<html>"), []byte("<html>"), "tgz"},
		"lacks a program": {other, other, "it has no release"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := setup(t, c.content, c.sum)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %q", err, c.want)
			}
			if files, _ := os.ReadDir(dir); len(files) > 0 {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

// The pinned release is well-formed.
func TestPinned(t *testing.T) {
	r := firecracker.Pinned()
	if len(r.SHA256) != 64 || !strings.HasPrefix(r.Version, "v1.") || !strings.Contains(r.URL(), r.Archive()) {
		t.Errorf("pinned release: %+v", r)
	}
}
