package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/skep-dev/skep/internal/image/erofs/erofstest"
	"github.com/skep-dev/skep/internal/testenv"
)

// serve serves a store's endpoint and returns its host.
func serve(t testing.TB, s *Store) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.Handler = s.RegistryHandler(srv.Listener.Addr().String())
	srv.Start()
	t.Cleanup(srv.Close)
	return hostOf(srv)
}

func TestRegistryPushPull(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	host := serve(t, s)
	img := simpleImage(t, "v1")
	push(t, host+"/org/hello:v1", img)
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"org/hello:v1", host + "/org/hello:v1", want.String(), host + "/org/hello@" + want.String()} {
		got, err := s.Get(ref)
		if err != nil || got.Digest != want.String() || got.Ref != "org/hello:v1" {
			t.Errorf("Get(%q) = %+v, %v", ref, got, err)
		}
	}
	used, release, err := s.Use(t.Context(), host+"/org/hello:v1")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	wantFiles(t, used, simpleFiles("v1")...)

	ref, err := name.ParseReference(host + "/org/hello:v1")
	if err != nil {
		t.Fatal(err)
	}
	back, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(back); err != nil {
		t.Error(err)
	}
	push(t, host+"/org/hello:v2", simpleImage(t, "v2"))
	tags, err := remote.List(ref.Context(), remote.WithContext(t.Context()))
	if err != nil || !slices.Equal(tags, []string{"v1", "v2"}) {
		t.Errorf("tags %v, %v", tags, err)
	}
	repos, err := remote.Catalog(t.Context(), ref.Context().Registry)
	if err != nil || !slices.Equal(repos, []string{"org/hello"}) {
		t.Errorf("catalog %v, %v", repos, err)
	}
	if err := remote.Delete(ref, remote.WithContext(t.Context())); err == nil {
		t.Error("deleting an image in use succeeded")
	}
	release()
	if err := remote.Delete(ref, remote.WithContext(t.Context())); err != nil {
		t.Error(err)
	}
	if _, err := s.Get("org/hello:v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after deleting: %v", err)
	}
}

func TestRegistryIndex(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	host := serve(t, s)
	mine := simpleImage(t, "mine")
	cfg, _ := mine.ConfigFile()
	foreign := otherPlatform(t, mine)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: cfg.Architecture}}})
	ref, err := name.ParseReference(host + "/multi:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	indexDigest, _ := index.Digest()
	mineDigest, _ := mine.Digest()
	for _, ref := range []string{"multi:v1", indexDigest.String(), mineDigest.String(), "multi@" + indexDigest.String()} {
		got, err := s.Get(ref)
		if err != nil || got.Digest != mineDigest.String() {
			t.Errorf("Get(%q) = %+v, %v", ref, got, err)
		}
	}
	if all := s.List(); len(all) != 1 {
		t.Errorf("List has %d images", len(all))
	}
	// Garbage collection spares the other platform's image.
	clear(s.recent)
	if _, err := s.GC(t.Context(), Policy{}); err != nil {
		t.Fatal(err)
	}
	back, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(back); err != nil {
		t.Error(err)
	}
}

func TestRegistryWithSkopeo(t *testing.T) {
	t.Parallel()
	skopeo := testenv.Tool(t, "skopeo", "skopeo")
	s := openStore(t)
	host := serve(t, s)
	run := func(args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, skopeo, args...).CombinedOutput(); err != nil {
			t.Fatalf("skopeo %v: %v: %s", args, err, out)
		}
	}
	src := makeLayout(t, "hello:v1")
	run("copy", "--insecure-policy", "--dest-tls-verify=false", "oci:"+src+":hello:v1", "docker://"+host+"/hello:v1")
	img, release, err := s.Use(t.Context(), "hello:v1")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	wantFiles(t, img, simpleFiles("content of hello:v1")...)
	run("copy", "--insecure-policy", "--dest-tls-verify=false", "--format=v2s2", "docker-archive:"+dockerSave(t, "old:v1"), "docker://"+host+"/old:v1")
	run("copy", "--insecure-policy", "--dest-tls-verify=false", "--dest-compress-format=zstd", "--format=oci", "docker-archive:"+dockerSave(t, "zstd:v1"), "docker://"+host+"/zstd:v1")
	run("copy", "--insecure-policy", "--src-tls-verify=false", "docker://"+host+"/hello:v1", "oci:"+t.TempDir()+":back")
	for _, ref := range []string{"old:v1", "zstd:v1"} {
		img, release, err := s.Use(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		release()
		wantFiles(t, img, simpleFiles("content of "+ref)...)
	}
	// The store's directory is an OCI layout itself.
	run("inspect", "oci:"+s.dir+":index.docker.io/library/hello:v1")
}

func TestRegistryRefuses(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(c *Config) { c.MaxImageBytes = 1 << 20; c.MaxUploads = 2 })
	host := serve(t, s)
	do := func(method, path, contentType string, body io.Reader) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp
	}
	digest := "sha256:" + strings.Repeat("a", 64)
	manifest := `{"schemaVersion":2,"mediaType":"` + string(types.OCIManifestSchema1) + `","config":{"mediaType":"` + string(types.OCIConfigJSON) + `","digest":"` + digest + `","size":2},"layers":[]}`
	for _, c := range []struct {
		name, method, path, body string
		want                     int
	}{
		{"ping", "GET", "/v2/", "", 200},
		{"path escape", "GET", "/v2/x/blobs/sha256:../../../etc/passwd", "", 404},
		{"encoded escape", "GET", "/v2/x/blobs/%2e%2e%2f%2e%2e", "", 404},
		{"bad name", "GET", "/v2/UPPER/manifests/v1", "", 404},
		{"bad tag", "GET", "/v2/x/manifests/-v1", "", 404},
		{"unknown blob", "GET", "/v2/x/blobs/" + digest, "", 404},
		{"unknown manifest", "GET", "/v2/x/manifests/v1", "", 404},
		{"unknown manifest by digest", "HEAD", "/v2/x/manifests/" + digest, "", 404},
		{"unknown tags", "GET", "/v2/x/tags/list", "", 404},
		{"unknown upload", "PATCH", "/v2/x/blobs/uploads/ABCDEFGHIJKLMN", "x", 404},
		{"method", "DELETE", "/v2/x/blobs/" + digest, "", 405},
		{"wrong digest", "POST", "/v2/x/blobs/uploads/?digest=" + digest, "x", 400},
		{"no digest", "POST", "/v2/x/blobs/uploads/?digest=sha512:00", "x", 400},
		{"blob too large", "POST", "/v2/x/blobs/uploads/?digest=" + digest, strings.Repeat("x", 1<<20+1), 413},
		{"manifest without blobs", "PUT", "/v2/x/manifests/v1", manifest, 404},
		{"manifest of another digest", "PUT", "/v2/x/manifests/" + digest, manifest, 400},
		{"manifest is not JSON", "PUT", "/v2/x/manifests/v1", "hello", 400},
		{"manifest too large", "PUT", "/v2/x/manifests/v1", strings.Repeat(" ", maxManifestBytes+1), 413},
		{"delete unknown", "DELETE", "/v2/x/manifests/v1", "", 404},
		{"upload 1", "POST", "/v2/x/blobs/uploads/", "", 202},
		{"upload 2", "POST", "/v2/x/blobs/uploads/", "", 202},
		{"too many uploads", "POST", "/v2/x/blobs/uploads/", "", 429},
	} {
		if resp := do(c.method, c.path, "application/octet-stream", strings.NewReader(c.body)); resp.StatusCode != c.want {
			t.Errorf("%s: status %d, want %d", c.name, resp.StatusCode, c.want)
		}
	}
}

// A chunked upload that breaks off goes on where it stopped.
func TestRegistryChunkedUpload(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	host := serve(t, s)
	data := bytes.Repeat([]byte("0123456789"), 1000)
	h, _, _ := v1.SHA256(bytes.NewReader(data))
	do := func(method, path string, body []byte, contentRange string, want int) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if contentRange != "" {
			req.Header.Set("Content-Range", contentRange)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Fatalf("%s %s: status %d, want %d", method, path, resp.StatusCode, want)
		}
		return resp
	}
	at := do("POST", "/v2/x/blobs/uploads/", nil, "", 202).Header.Get("Location")
	do("PATCH", at, data[:4000], "0-3999", 202)
	if got := do("GET", at, nil, "", 204).Header.Get("Range"); got != "0-3999" {
		t.Errorf("range %q", got)
	}
	do("PATCH", at, data[5000:], "5000-9999", 416)
	do("PATCH", at, data[4000:9000], "", 202)
	do("PUT", at+"?digest="+h.String(), data[9000:], "", 201)
	do("PUT", at+"?digest="+h.String(), nil, "", 404)
	if resp := do("HEAD", "/v2/x/blobs/"+h.String(), nil, "", 200); resp.ContentLength != 10000 {
		t.Errorf("blob of %d bytes", resp.ContentLength)
	}
	at = do("POST", "/v2/x/blobs/uploads/", nil, "", 202).Header.Get("Location")
	do("DELETE", at, nil, "", 204)
	do("POST", "/v2/y/blobs/uploads/?mount="+h.String()+"&from=x", nil, "", 201)
	wantTmpEmpty(t, s)
}

// What is hostile is refused when it is used; the push itself is content.
func TestRegistryHostileLayer(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	host := serve(t, s)
	push(t, host+"/evil:v1", makeImage(t, layerOf(t, types.OCILayer, erofstest.File("../x", "1"))))
	if _, _, err := s.Use(t.Context(), "evil:v1"); !errors.Is(err, ErrBadLayer) {
		t.Errorf("error %v", err)
	}
	var te *transport.Error
	ref, err := name.ParseReference(host + "/artifact:v1")
	if err != nil {
		t.Fatal(err)
	}
	err = remote.Write(ref, mutate.ConfigMediaType(simpleImage(t, "x"), "application/vnd.cncf.helm.config.v1+json"))
	if !errors.As(err, &te) || te.StatusCode != http.StatusBadRequest {
		t.Errorf("pushing an artifact: %v", err)
	}
}
