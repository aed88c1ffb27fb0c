package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// echoHeader answers with the header it got, one line each.
func echoHeader(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "X-Private")
	w.Header().Set("X-Private", "secret")
	w.Header().Set("Keep-Alive", "timeout=5")
	w.Header().Set("X-Public", "yes")
	for name, values := range r.Header {
		for _, v := range values {
			fmt.Fprintf(w, "%s: %s\n", name, v)
		}
	}
	fmt.Fprintf(w, "te: %v\n", r.TransferEncoding)
}

func TestHeaders(t *testing.T) {
	addr := upstream(t, echoHeader)
	for _, proto := range []Protocol{HTTP1, H2C} {
		for _, trust := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s trust=%v", proto, trust), func(t *testing.T) {
				g := startGateway(t, Config{TrustForwarded: trust}, Revision{Protocol: proto})
				g.add(t, "a", addr)
				r := g.request(t, "GET", "/", nil)
				r.Header = http.Header{
					"Connection": {"X-Hop, keep-alive"}, "X-Hop": {"1"}, "Keep-Alive": {"1"},
					"Proxy-Authorization": {"secret"}, "Proxy-Connection": {"x"}, "Te": {"trailers, deflate"},
					"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=6.6.6.6"},
					"X-Request-Id": {"mine-1"}, "X-Kept": {"a", "b"}, "Accept-Encoding": {"gzip"},
				}
				resp, body := do(t, newClient(t), r)
				wantStatus(t, resp, body, 200)
				lower := strings.ToLower(body)
				for _, gone := range []string{"x-hop", "keep-alive", "proxy-", "deflate"} {
					if strings.Contains(lower, gone) {
						t.Errorf("%s was forwarded:\n%s", gone, body)
					}
				}
				want := []string{"X-Forwarded-For: 127.0.0.1\n", "X-Forwarded-Proto: http\n", "X-Forwarded-Host: " + testHost + "\n",
					"Forwarded: for=127.0.0.1;host=" + testHost + ";proto=http\n", "X-Request-Id: mine-1\n", "X-Kept: a\n", "X-Kept: b\n", "Te: trailers\n"}
				if trust {
					want[0], want[1] = "X-Forwarded-For: 6.6.6.6, 127.0.0.1\n", "X-Forwarded-Proto: https\n"
					want[3] = "Forwarded: for=6.6.6.6, for=127.0.0.1;host=" + testHost + ";proto=http\n"
				}
				for _, line := range want {
					if !strings.Contains(body, line) {
						t.Errorf("missing %q in:\n%s", line, body)
					}
				}
				h := resp.Header
				if h.Get("X-Public") != "yes" || h.Get("Keep-Alive") != "" || proto == HTTP1 && h.Get("X-Private") != "" || h.Get("X-Request-Id") != "mine-1" {
					t.Errorf("response header: %v", h)
				}
			})
		}
	}
}

func TestRequestID(t *testing.T) {
	for in, keep := range map[string]bool{"": false, "abc-123": true, "a b": false, "a\"": false, strings.Repeat("x", 129): false, "a/b+c=": true} {
		h := http.Header{}
		if in != "" {
			h.Set("X-Request-Id", in)
		}
		got := requestID(h)
		if keep != (got == in) || !saneID(got) {
			t.Errorf("%q became %q", in, got)
		}
	}
}

func TestRouting(t *testing.T) {
	g := New(Config{})
	for _, bad := range []string{"", ".", "a..b", "a b", "a/b", strings.Repeat("a", 64), strings.Repeat("a.", 130), "é.com", "*.com"} {
		if err := g.SetRoute(bad, testKey); err == nil {
			t.Errorf("a route to %q was taken", bad)
		}
	}
	if err := g.SetRoute("Hello.Default.Example.com", testKey); err != nil {
		t.Fatal(err)
	}
	g.SetRevision(Revision{Key: testKey, QueueTimeout: time.Nanosecond})
	for host, want := range map[string]int{
		"hello.default.example.com": 504, "HELLO.default.example.com.": 504, "hello.default.example.com:8080": 504,
		"hello.default.example.com.:80": 504, "other.example.com": 404, "": 400, "a b": 400, "hello.default.example.com:99999999": 400,
		"[::1]:80": 404, "[::1": 400, "hello.default.example.com:8080:80": 400, "hello.default.example.com..": 400,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("host %q: status %d, want %d", host, w.Code, want)
		}
		if w.Header().Get("X-Request-Id") == "" || !strings.HasPrefix(w.Body.String(), "skep: ") {
			t.Errorf("host %q: %v %q", host, w.Header(), w.Body)
		}
	}
	r := httptest.NewRequest("CONNECT", "http://hello.default.example.com", nil)
	w := httptest.NewRecorder()
	if g.ServeHTTP(w, r); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("CONNECT: %d", w.Code)
	}
}

// rawUpstream accepts connections and gives each to serve with its number, from 1.
func rawUpstream(t *testing.T, serve func(n int, c net.Conn, br *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				serve(n, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

func deadAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestRetries(t *testing.T) {
	good := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	})
	// dies reads a request, or the beginning of it, and closes the connection.
	dies := rawUpstream(t, func(_ int, _ net.Conn, br *bufio.Reader) {
		if r, err := http.ReadRequest(br); err == nil {
			_, _ = io.ReadFull(r.Body, make([]byte, 1))
		}
	})
	dead := deadAddr(t)
	cases := []struct {
		name, method, body, first string
		want                      int
	}{
		{"refused GET", "GET", "", dead, 200},
		{"refused POST", "POST", "hello", dead, 200},
		{"refused large POST", "POST", strings.Repeat("x", smallBody+1), dead, 200},
		{"died GET", "GET", "", dies, 200},
		{"died PUT", "PUT", "hello", dies, 200},
		{"died POST", "POST", "hello", dies, 502},
		{"died large PUT", "PUT", strings.Repeat("x", smallBody+1), dies, 502},
	}
	for _, proto := range []Protocol{HTTP1, H2C} {
		for _, tc := range cases {
			t.Run(string(proto)+" "+tc.name, func(t *testing.T) {
				if proto == H2C && strings.HasPrefix(tc.name, "died") {
					t.Skip("the raw instance speaks HTTP/1.1")
				}
				var failed atomic.Int64
				g := startGateway(t, Config{OnDialError: func(_ RevisionKey, id string, err error) {
					if id != "bad" || err == nil {
						t.Errorf("dial error of %s: %v", id, err)
					}
					failed.Add(1)
				}}, Revision{Protocol: proto, ContainerConcurrency: 5})
				g.add(t, "bad", tc.first)
				g.add(t, "good", good)
				resp, body := do(t, newClient(t), g.request(t, tc.method, "/", strings.NewReader(tc.body)))
				wantStatus(t, resp, body, tc.want)
				if tc.want == 200 && body != tc.body {
					t.Errorf("%d bytes of %d came back", len(body), len(tc.body))
				}
				if refused := tc.first == dead; refused != (failed.Load() == 1) {
					t.Errorf("%d dial errors told", failed.Load())
				}
			})
		}
	}
	t.Run("the only instance is replaced", func(t *testing.T) {
		var g *testGateway
		told := make(chan struct{}, 1)
		g = startGateway(t, Config{OnDialError: func(RevisionKey, string, error) { told <- struct{}{} }}, Revision{})
		g.add(t, "bad", dead)
		go func() {
			<-told
			g.RemoveInstance(testKey, "bad")
			g.AddInstance(testKey, &testInstance{id: "good", addr: good, start: StartInfo{Kind: Booted}})
		}()
		resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, 200)
	})
	t.Run("bounded", func(t *testing.T) {
		var failed atomic.Int64
		g := startGateway(t, Config{MaxRetries: 2, OnDialError: func(RevisionKey, string, error) { failed.Add(1) }}, Revision{})
		for i := range 10 {
			g.add(t, fmt.Sprint(i), dead)
		}
		resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, http.StatusBadGateway)
		if failed.Load() != 3 {
			t.Errorf("%d dials", failed.Load())
		}
	})
	t.Run("a kept connection was closed", func(t *testing.T) {
		addr := rawUpstream(t, func(_ int, c net.Conn, br *bufio.Reader) {
			if _, err := http.ReadRequest(br); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		g := startGateway(t, Config{}, Revision{})
		g.add(t, "a", addr)
		for range 20 {
			resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
			wantStatus(t, resp, body, 200)
		}
	})
}

// TestBadInstances checks what an instance that breaks the protocol, on purpose or not, can do.
func TestBadInstances(t *testing.T) {
	cases := []struct {
		name, response string
		want           int // 0: cut
		body           string
	}{
		{"not HTTP", "hello\r\n\r\n", 502, ""},
		{"nothing", "", 502, ""},
		{"half a header", "HTTP/1.1 200 OK\r\nX: ", 502, ""},
		{"header without end", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxResponseHeader) + "\r\n\r\n", 502, ""},
		{"endless 1xx", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", maxInformational+1) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 502, ""},
		{"unasked switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 502, ""},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 502, ""},
		{"bad length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc", 502, ""},
		{"unknown encoding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: cow\r\n\r\nabc", 502, ""},
		{"length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, "ok"},
		{"body too short", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", 0, ""},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n", 0, ""},
		{"chunks without end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", 0, ""},
		{"until close", "HTTP/1.1 200 OK\r\n\r\nabc", 200, "abc"},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nabc", 200, "abc"},
		{"no type is guessed", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", 200, "<html>"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			addr := rawUpstream(t, func(_ int, c net.Conn, br *bufio.Reader) {
				if _, err := http.ReadRequest(br); err == nil {
					_, _ = io.WriteString(c, tc.response)
				}
			})
			g := startGateway(t, Config{MaxRetries: -1}, Revision{})
			g.add(t, "a", addr)
			resp, err := newClient(t).Do(g.request(t, "POST", "/", nil))
			if err != nil {
				if tc.want != 0 {
					t.Fatal(err)
				}
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if tc.want == 0 {
				if err == nil {
					t.Errorf("a broken response looks whole: %q", body)
				}
				return
			}
			wantStatus(t, resp, string(body), tc.want)
			if tc.want == 200 && (string(body) != tc.body || resp.Header.Get("Content-Type") != "") {
				t.Errorf("body %q, header %v", body, resp.Header)
			}
		})
	}
	t.Run("a second response is not taken for the next request's", func(t *testing.T) {
		addr := rawUpstream(t, func(n int, c net.Conn, br *bufio.Reader) {
			for {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			}
		})
		g := startGateway(t, Config{}, Revision{})
		g.add(t, "a", addr)
		c := newClient(t)
		for range 5 {
			if resp, body := do(t, c, g.request(t, "GET", "/", nil)); body != "good" {
				t.Fatalf("%d %q", resp.StatusCode, body)
			}
		}
	})
	t.Run("an answer to half a request", func(t *testing.T) {
		addr := rawUpstream(t, func(_ int, c net.Conn, br *bufio.Reader) {
			if _, err := http.ReadRequest(br); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
				_, _ = io.Copy(io.Discard, br)
			}
		})
		g := startGateway(t, Config{}, Revision{})
		g.add(t, "a", addr)
		pr, pw := io.Pipe()
		defer pw.Close()
		go func() { _, _ = io.WriteString(pw, "the beginning") }()
		resp, body := do(t, newClient(t), g.request(t, "POST", "/", pr))
		wantStatus(t, resp, body, http.StatusRequestEntityTooLarge)
		eventually(t, "the place is free", func() bool { s, _ := g.Stats(testKey); return s.InFlight == 0 })
	})
}

func TestMetrics(t *testing.T) {
	addr := upstream(t, func(http.ResponseWriter, *http.Request) {})
	reg := prometheus.NewPedanticRegistry()
	var logs bytes.Buffer
	g := startGateway(t, Config{Registerer: reg, Log: slog.New(slog.NewJSONHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}, Revision{})
	g.add(t, "a", addr)
	resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
	wantStatus(t, resp, body, 200)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := g.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	want := `# HELP skep_cold_starts_total Instances started, by kind: booted or restored.
# TYPE skep_cold_starts_total counter
skep_cold_starts_total{kind="booted",namespace="default",revision="hello-00001"} 1
# HELP skep_instances Instances that take requests.
# TYPE skep_instances gauge
skep_instances{namespace="default",revision="hello-00001"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "skep_cold_starts_total", "skep_instances"); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(g.metrics.forRevision(testKey).classes[2]); got != 1 {
		t.Errorf("%v requests of class 2xx", got)
	}
	if !strings.Contains(logs.String(), `"status":200`) || !strings.Contains(logs.String(), resp.Header.Get("X-Request-Id")) {
		t.Errorf("access log: %s", logs.String())
	}
	g.RemoveRevision(testKey)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "revision" {
					t.Errorf("%s still has the removed revision", f.GetName())
				}
			}
		}
	}
}

func TestIdleConnectionsGo(t *testing.T) {
	now := time.Unix(1000, 0)
	in := newInstance(New(Config{Now: func() time.Time { return now }}), nil, &testInstance{id: "a"})
	a, b := net.Pipe()
	defer b.Close()
	in.putIdle(newUpstreamConn(a), now)
	in.sweep()
	if len(in.idle) != 1 {
		t.Fatal("a fresh connection was closed")
	}
	now = now.Add(idleFor)
	in.sweep()
	if _, err := a.Write(nil); len(in.idle) != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("an old connection is still there: %v", err)
	}
	in.closeIdle()
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"a", "A.b.:80", "[::1]:80", "a..b", "127.0.0.1:8080", "", ":80", "a:b:c", "\x00", strings.Repeat("a.", 127), "xn--bcher-kva.example", "[fe80::1%25eth0]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, ok := normalizeHost(s)
		if !ok {
			if h != "" {
				t.Errorf("%q is no host but gave %q", s, h)
			}
			return
		}
		if len(h) > maxHost || strings.ContainsAny(h, "\r\n\x00 /\\@?#\"") || strings.ToLower(h) != h || strings.HasSuffix(h, ".") {
			t.Errorf("%q became %q", s, h)
		}
		if again, ok := normalizeHost(h); !ok || again != h {
			t.Errorf("%q became %q, which became %q", s, h, again)
		}
		if full, ok := normalizeHost(strings.ToUpper(h) + ":8080"); !ok || full != h {
			t.Errorf("%q with a port became %q", h, full)
		}
	})
}
