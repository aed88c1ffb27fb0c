package gateway

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

var testKey = RevisionKey{Namespace: "default", Name: "hello-00001"}

// plain tests without the fast lane: go test -plain.
var plain = flag.Bool("plain", false, "without the fast lane")

const testHost = "hello.default.example.com"

// testInstance is an Instance at a TCP address.
type testInstance struct {
	id, addr string
	start    StartInfo
}

func (i *testInstance) ID() string       { return i.id }
func (i *testInstance) Start() StartInfo { return i.start }
func (i *testInstance) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", i.addr)
}

// testGateway is a gateway that serves on a socket, with one revision and a route to it.
type testGateway struct {
	*Gateway
	url  string // http://127.0.0.1:port
	addr string
}

func startGateway(t *testing.T, cfg Config, rev Revision) *testGateway {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	g := New(cfg)
	rev.Key = testKey
	g.SetRevision(rev)
	if err := g.SetRoute(testHost, testKey); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(g, nil)
	served := make(chan struct{})
	serve := l
	if !*plain {
		serve = g.FastLane(l)
	}
	go func() { defer close(served); _ = srv.Serve(serve) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-served
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Drain(ctx); err != nil {
			t.Errorf("requests remain after the test: %v", err)
		}
	})
	return &testGateway{Gateway: g, url: "http://" + l.Addr().String(), addr: l.Addr().String()}
}

// upstream starts an HTTP server that speaks HTTP/1.1 and h2c and returns its address.
func upstream(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	s.Config.Protocols = &p
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.Listener.Addr().String()
}

func (g *testGateway) add(t *testing.T, id, addr string) {
	t.Helper()
	if !g.AddInstance(testKey, &testInstance{id: id, addr: addr, start: StartInfo{Kind: Booted, Phases: []Phase{{"boot", 1500 * time.Microsecond}}}}) {
		t.Fatalf("instance %s was not added", id)
	}
}

func (g *testGateway) request(t *testing.T, method, path string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, g.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = testHost
	return r
}

// newClient is an HTTP/1.1 client of its own.
func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// do sends a request and reads the response.
func do(t *testing.T, c *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	return resp, string(b)
}

func wantStatus(t *testing.T, resp *http.Response, body string, want int) {
	t.Helper()
	if resp.StatusCode != want {
		t.Fatalf("status %d, want %d; body: %s", resp.StatusCode, want, body)
	}
}

// eventually polls until ok; only the test's own deadline ends it otherwise.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for wait := time.Millisecond; !ok(); wait = min(2*wait, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		<-time.After(wait)
	}
}

func TestProxy(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("upstream reads the body: %v", err)
		}
		w.Header().Set("X-Seen", r.Method+" "+r.RequestURI+" "+r.Host)
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write(b)
	})
	big := strings.Repeat("0123456789abcdef", 1<<14)
	for _, proto := range []Protocol{HTTP1, H2C} {
		t.Run(string(proto), func(t *testing.T) {
			g := startGateway(t, Config{}, Revision{Protocol: proto})
			g.add(t, "a", addr)
			c := newClient(t)
			cases := []struct {
				name, method, path, body string
				chunked                  bool
			}{
				{"get", "GET", "/a/b?x=1&y=%20", "", false},
				{"escaped path", "GET", "/a%2Fb/%7Ec", "", false},
				{"empty post", "POST", "/", "", false},
				{"small post", "POST", "/", "hello", false},
				{"large post", "POST", "/", big, false},
				{"chunked post", "POST", "/", big, true},
				{"put", "PUT", "/x", "y", false},
				{"delete", "DELETE", "/x", "", false},
			}
			for _, tc := range cases {
				t.Run(tc.name, func(t *testing.T) {
					var body io.Reader
					if tc.body != "" {
						body = strings.NewReader(tc.body)
					}
					if tc.chunked {
						body = io.MultiReader(body)
					}
					resp, got := do(t, c, g.request(t, tc.method, tc.path, body))
					wantStatus(t, resp, got, http.StatusAccepted)
					if got != tc.body {
						t.Errorf("%d bytes of body came back of %d", len(got), len(tc.body))
					}
					if want := tc.method + " " + tc.path + " " + testHost; resp.Header.Get("X-Seen") != want {
						t.Errorf("upstream saw %q, want %q", resp.Header.Get("X-Seen"), want)
					}
					if s := resp.Header.Get("X-Skep-Start"); s != "warm" {
						t.Errorf("X-Skep-Start: %q", s)
					}
					if st := resp.Header.Get("Server-Timing"); !strings.HasPrefix(st, "queue;dur=") {
						t.Errorf("Server-Timing: %q", st)
					}
				})
			}
		})
	}
}
