package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skep-dev/skep/internal/image/erofs/erofstest"
)

func TestPull(t *testing.T) {
	t.Parallel()
	srv := registryServer(t)
	ref := hostOf(srv) + "/app:v1"
	push(t, ref, simpleImage(t, "v1"))
	s := openStore(t)
	var last Progress
	img, err := s.Pull(t.Context(), ref, PullOptions{Insecure: true, Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, img, simpleFiles("v1")...)
	if last.Phase != "flatten" || last.Done != last.Total || last.Total == 0 {
		t.Errorf("last progress %+v", last)
	}
	byDigest, err := s.Pull(t.Context(), hostOf(srv)+"/app@"+img.Digest, PullOptions{Insecure: true})
	if err != nil || byDigest.Digest != img.Digest {
		t.Errorf("by digest: %+v, %v", byDigest, err)
	}
	// The tag moves; pulling again follows, and the old image stays by digest.
	push(t, ref, simpleImage(t, "v2"))
	moved, err := s.Pull(t.Context(), ref, PullOptions{Insecure: true})
	if err != nil || moved.Digest == img.Digest {
		t.Errorf("moved tag: %+v, %v", moved, err)
	}
	if old, err := s.Get(img.Digest); err != nil || old.Digest != img.Digest {
		t.Errorf("old image: %+v, %v", old, err)
	}
}

func otherPlatform(t testing.TB, img v1.Image) v1.Image {
	t.Helper()
	cfg, _ := img.ConfigFile()
	cfg = cfg.DeepCopy()
	cfg.Architecture = "s390x"
	img, err := mutate.ConfigFile(img, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPullIndex(t *testing.T) {
	t.Parallel()
	srv := registryServer(t)
	mine := simpleImage(t, "mine")
	cfg, _ := mine.ConfigFile()
	entry := func(img v1.Image, os, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch}}}
	}
	foreign := otherPlatform(t, mine)
	for _, c := range []struct {
		ref  string
		add  []mutate.IndexAddendum
		want error
	}{
		{"both", []mutate.IndexAddendum{entry(foreign, "linux", "s390x"), entry(mine, "linux", cfg.Architecture), entry(foreign, "unknown", "unknown")}, nil},
		{"foreign", []mutate.IndexAddendum{entry(foreign, "linux", "s390x"), entry(foreign, "unknown", "unknown")}, ErrWrongPlatform},
		{"empty", nil, ErrNotImage},
	} {
		ref, err := name.ParseReference(hostOf(srv) + "/index:" + c.ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(ref, mutate.AppendManifests(empty.Index, c.add...)); err != nil {
			t.Fatal(err)
		}
		img, err := openStore(t).Pull(t.Context(), ref.Name(), PullOptions{Insecure: true})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.ref, err, c.want)
		}
		if err == nil {
			wantFiles(t, img, simpleFiles("mine")...)
		} else {
			t.Log(err)
		}
	}
}

func TestPullErrors(t *testing.T) {
	t.Parallel()
	srv := registryServer(t)
	host := hostOf(srv)
	push(t, host+"/foreign:v1", otherPlatform(t, simpleImage(t, "x")))
	push(t, host+"/hostile:v1", makeImage(t, layerOf(t, types.OCILayer, erofstest.File("../escape", "x"))))
	push(t, host+"/nottar:v1", makeImage(t, static.NewLayer([]byte(strings.Repeat("no tar", 1000)), types.OCIUncompressedLayer)))
	push(t, host+"/notgzip:v1", makeImage(t, static.NewLayer([]byte(strings.Repeat("no tar", 1000)), types.OCILayer)))
	push(t, host+"/large:v1", makeImage(t, layerOf(t, types.OCILayer, erofstest.File("a", strings.Repeat("x", 3<<20)))))
	push(t, host+"/artifact:v1", mutate.ConfigMediaType(simpleImage(t, "x"), "application/vnd.cncf.helm.config.v1+json"))

	deny := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(deny.Close)
	website := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("<html>hello</html>"))
	}))
	t.Cleanup(website.Close)
	gone := httptest.NewServer(nil)
	gone.Close()

	for _, c := range []struct {
		name, ref string
		secure    bool
		want      error
	}{
		{"bad name", "UPPER CASE", false, ErrBadReference},
		{"unknown image", host + "/nope:v1", false, ErrUnknown},
		{"unknown tag", host + "/foreign:v2", false, ErrUnknown},
		{"plain HTTP not asked for", host + "/foreign:v1", true, ErrPlainHTTP},
		{"unauthorized", hostOf(deny) + "/x:v1", false, ErrUnauthorized},
		{"a website", hostOf(website) + "/x:v1", false, ErrNotImage},
		{"nobody there", hostOf(gone) + "/x:v1", false, ErrUnreachable},
		{"wrong architecture", host + "/foreign:v1", false, ErrWrongPlatform},
		{"not an image", host + "/artifact:v1", false, ErrNotImage},
		{"path escape", host + "/hostile:v1", false, ErrBadLayer},
		{"not a tar", host + "/nottar:v1", false, ErrBadLayer},
		{"not gzip", host + "/notgzip:v1", false, ErrBadLayer},
		{"too large", host + "/large:v1", false, ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, func(c *Config) { c.MaxImageBytes = 2 << 20 })
			img, err := s.Pull(t.Context(), c.ref, PullOptions{Insecure: !c.secure})
			if !errors.Is(err, c.want) {
				t.Fatalf("got %+v, %v, want %v", img, err, c.want)
			}
			t.Log(err)
			if len(s.List()) > 0 {
				t.Error("the store has an image")
			}
			wantTmpEmpty(t, s)
		})
	}
}

// proxyTo is a registry in front of another whose responses go through change.
func proxyTo(t testing.TB, to *httptest.Server, handler func(next http.Handler) http.HandlerFunc) *httptest.Server {
	t.Helper()
	target, err := url.Parse(to.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	srv := httptest.NewServer(handler(proxy))
	t.Cleanup(srv.Close)
	return srv
}

// cutWriter breaks the connection after n bytes of body.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func TestPullResumes(t *testing.T) {
	t.Parallel()
	// Our own endpoint serves ranges.
	origin := openStore(t)
	ours := httptest.NewServer(origin.RegistryHandler())
	defer ours.Close()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	if _, err := origin.Add(t.Context(), makeImage(t, layerOf(t, types.OCIUncompressedLayer, erofstest.File("big", string(data)))), "big"); err != nil {
		t.Fatal(err)
	}
	var ranges, whole atomic.Int32
	flaky := proxyTo(t, ours, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				if r.Header.Get("Range") != "" {
					ranges.Add(1)
				} else {
					whole.Add(1)
				}
				w = &cutWriter{w, 300_000}
			}
			next.ServeHTTP(w, r)
		}
	})
	s := openStore(t)
	img, err := s.Pull(t.Context(), hostOf(flaky)+"/big", PullOptions{Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, img, "big="+string(data))
	if ranges.Load() != 3 || whole.Load() != 2 { // config and layer
		t.Errorf("%d resumed and %d whole requests", ranges.Load(), whole.Load())
	}
}

func TestPullRetriesServerErrors(t *testing.T) {
	t.Parallel()
	srv := registryServer(t)
	push(t, hostOf(srv)+"/app:v1", simpleImage(t, "v1"))
	var mu sync.Mutex
	seen := map[string]bool{}
	flaky := proxyTo(t, srv, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			first := !seen[r.URL.Path]
			seen[r.URL.Path] = true
			mu.Unlock()
			if first {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	if _, err := openStore(t).Pull(t.Context(), hostOf(flaky)+"/app:v1", PullOptions{Insecure: true}); err != nil {
		t.Fatal(err)
	}
}

func TestPullRefusesCorruptContent(t *testing.T) {
	t.Parallel()
	srv := registryServer(t)
	push(t, hostOf(srv)+"/app:v1", simpleImage(t, "v1"))
	for _, part := range []string{"/blobs/", "/manifests/sha256:"} {
		evil := proxyTo(t, srv, func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.URL.Path, part) {
					next.ServeHTTP(w, r)
					return
				}
				rec := httptest.NewRecorder()
				next.ServeHTTP(rec, r)
				body := rec.Body.Bytes()
				body[len(body)/2] ^= 1
				for k, v := range rec.Header() {
					w.Header()[k] = v
				}
				w.WriteHeader(rec.Code)
				_, _ = w.Write(body)
			}
		})
		s := openStore(t)
		img, err := simpleImage(t, "v1").Digest()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pull(t.Context(), hostOf(evil)+"/app@"+img.String(), PullOptions{Insecure: true}); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotImage) {
			t.Errorf("corrupt %s: %v", part, err)
		} else {
			t.Log(err)
		}
		wantTmpEmpty(t, s)
	}
}

// Ten pulls at once are one; the caller who gives up does not end it.
func TestPullsCollapse(t *testing.T) {
	t.Parallel()
	srv := registryServer(t)
	push(t, hostOf(srv)+"/app:v1", simpleImage(t, "v1"))
	var blobs atomic.Int32
	gate := make(chan struct{})
	var arrived sync.Once
	here := make(chan struct{})
	counting := proxyTo(t, srv, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				blobs.Add(1)
				arrived.Do(func() { close(here) })
				<-gate
			}
			next.ServeHTTP(w, r)
		}
	})
	s := openStore(t)
	ref := hostOf(counting) + "/app:v1"
	first, cancel := context.WithCancel(t.Context())
	defer cancel()
	firstErr := make(chan error, 1)
	go func() {
		_, err := s.Pull(first, ref, PullOptions{Insecure: true})
		firstErr <- err
	}()
	<-here
	errs := make(chan error, 10)
	for range 10 {
		go func() {
			img, err := s.Pull(t.Context(), ref, PullOptions{Insecure: true})
			if err == nil && img.Ref == "" {
				err = fmt.Errorf("image %+v", img)
			}
			errs <- err
		}()
	}
	waitForWaiters(t, s, 11)
	cancel()
	if err := <-firstErr; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
	close(gate)
	for range 10 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if blobs.Load() != 3 { // config and two layers
		t.Errorf("%d blob requests", blobs.Load())
	}
}

func waitForWaiters(t testing.TB, s *Store, want int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		s.pulls.mu.Lock()
		n := 0
		for _, c := range s.pulls.calls {
			n += c.waiters
		}
		s.pulls.mu.Unlock()
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d waiters, want %d", n, want)
		}
		time.Sleep(time.Millisecond) // polling a counter that nothing signals
	}
}

// Cancelling every caller ends the pull and leaves nothing.
func TestPullCancelled(t *testing.T) {
	t.Parallel()
	srv := registryServer(t)
	push(t, hostOf(srv)+"/app:v1", simpleImage(t, "v1"))
	here := make(chan struct{}, 100)
	hanging := proxyTo(t, srv, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				here <- struct{}{}
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	s := openStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-here
		cancel()
	}()
	if _, err := s.Pull(ctx, hostOf(hanging)+"/app:v1", PullOptions{Insecure: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	s.pulls.wg.Wait()
	s.blobs.wg.Wait()
	wantTmpEmpty(t, s)
	if _, err := s.Pull(t.Context(), hostOf(srv)+"/app:v1", PullOptions{Insecure: true}); err != nil {
		t.Errorf("pull after a cancelled one: %v", err)
	}
	if _, err := s.Pull(t.Context(), hostOf(hanging)+"/app:v2", PullOptions{Insecure: true, Timeout: time.Nanosecond}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v", err)
	}
}

type keychain authn.AuthConfig

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig(k)), nil
}

func TestPullWithCredentials(t *testing.T) {
	t.Parallel()
	srv := registryServer(t)
	push(t, hostOf(srv)+"/app:v1", simpleImage(t, "v1"))
	guarded := proxyTo(t, srv, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
	s := openStore(t)
	ref := hostOf(guarded) + "/app:v1"
	for password, want := range map[string]error{"secret": nil, "wrong": ErrUnauthorized} {
		_, err := s.Pull(t.Context(), ref, PullOptions{Insecure: true, Keychain: keychain{Username: "me", Password: password}})
		if !errors.Is(err, want) {
			t.Errorf("password %q: %v", password, err)
		}
		if err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}
