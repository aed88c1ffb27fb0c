package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFastParse says what the fast lane takes; all else is for net/http.
func TestFastParse(t *testing.T) {
	const h = "Host: a.example.com\r\n"
	cases := []struct {
		name, raw string
		ok        bool
		body      string
	}{
		{"get", "GET /a?b=%20 HTTP/1.1\r\n" + h + "Accept: */*\r\n\r\n", true, ""},
		{"post", "POST / HTTP/1.1\r\n" + h + "Content-Length: 5\r\n\r\nhello", true, "hello"},
		{"pipelined", "GET / HTTP/1.1\r\n" + h + "\r\nGET / HTTP/1.1\r\n", true, ""},
		{"keep-alive", "GET / HTTP/1.1\r\n" + h + "Connection: Keep-Alive\r\n\r\n", true, ""},
		{"empty value", "GET / HTTP/1.1\r\n" + h + "X:\r\n\r\n", true, ""},
		{"incomplete head", "GET / HTTP/1.1\r\n" + h, false, ""},
		{"incomplete body", "POST / HTTP/1.1\r\n" + h + "Content-Length: 6\r\n\r\nhello", false, ""},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n" + h + "\r\n", false, ""},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false, ""},
		{"odd method", "BREW / HTTP/1.1\r\n" + h + "\r\n", false, ""},
		{"absolute target", "GET http://a/ HTTP/1.1\r\n" + h + "\r\n", false, ""},
		{"two spaces", "GET  / HTTP/1.1\r\n" + h + "\r\n", false, ""},
		{"tab for space", "GET\t/ HTTP/1.1\r\n" + h + "\r\n", false, ""},
		{"bad escape", "GET /%zz HTTP/1.1\r\n" + h + "\r\n", false, ""},
		{"bytes in the target", "GET /\xc3\xa9 HTTP/1.1\r\n" + h + "\r\n", false, ""},
		{"leading line", "\r\nGET / HTTP/1.1\r\n" + h + "\r\n", false, ""},
		{"no host", "GET / HTTP/1.1\r\n\r\n", false, ""},
		{"two hosts", "GET / HTTP/1.1\r\n" + h + h + "\r\n", false, ""},
		{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", false, ""},
		{"close", "GET / HTTP/1.1\r\n" + h + "Connection: close\r\n\r\n", false, ""},
		{"named header", "GET / HTTP/1.1\r\n" + h + "Connection: keep-alive, x\r\n\r\n", false, ""},
		{"chunked", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false, ""},
		{"any transfer encoding", "POST / HTTP/1.1\r\n" + h + "transfer-encoding: identity\r\n\r\n", false, ""},
		{"two lengths", "POST / HTTP/1.1\r\n" + h + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n", false, ""},
		{"signed length", "POST / HTTP/1.1\r\n" + h + "Content-Length: +0\r\n\r\n", false, ""},
		{"length list", "POST / HTTP/1.1\r\n" + h + "Content-Length: 0,0\r\n\r\n", false, ""},
		{"hex length", "POST / HTTP/1.1\r\n" + h + "Content-Length: 0x0\r\n\r\n", false, ""},
		{"no length", "POST / HTTP/1.1\r\n" + h + "Content-Length:\r\n\r\n", false, ""},
		{"long length", "POST / HTTP/1.1\r\n" + h + "Content-Length: 000000\r\n\r\n", false, ""},
		{"space before the colon", "GET / HTTP/1.1\r\n" + h + "X : 1\r\n\r\n", false, ""},
		{"folded", "GET / HTTP/1.1\r\n" + h + "X: 1\r\n 2\r\n\r\n", false, ""},
		{"line feed alone", "GET / HTTP/1.1\r\n" + h + "X: 1\nY: 2\r\n\r\n", false, ""},
		{"carriage return alone", "GET / HTTP/1.1\r\n" + h + "X: 1\rY: 2\r\n\r\n", false, ""},
		{"NUL", "GET / HTTP/1.1\r\n" + h + "X: \x00\r\n\r\n", false, ""},
		{"no name", "GET / HTTP/1.1\r\n" + h + ": 1\r\n\r\n", false, ""},
		{"no colon", "GET / HTTP/1.1\r\n" + h + "X\r\n\r\n", false, ""},
		{"upgrade", "GET / HTTP/1.1\r\n" + h + "Upgrade: h2c\r\n\r\n", false, ""},
		{"expect", "GET / HTTP/1.1\r\n" + h + "Expect: 100-continue\r\n\r\n", false, ""},
		{"te", "GET / HTTP/1.1\r\n" + h + "TE: trailers\r\n\r\n", false, ""},
		{"proxy header", "GET / HTTP/1.1\r\n" + h + "Proxy-Connection: x\r\n\r\n", false, ""},
		{"settings", "GET / HTTP/1.1\r\n" + h + "HTTP2-Settings: x\r\n\r\n", false, ""},
		{"too many", "GET / HTTP/1.1\r\n" + h + strings.Repeat("X: 1\r\n", maxFastHeaders+1) + "\r\n", false, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			var q fastRequest
			if ok := q.parse([]byte(tc.raw)); ok != tc.ok || ok && string(q.body) != tc.body {
				t.Errorf("parsed: %v, body %q", ok, q.body)
			}
		})
	}
}

// FuzzFastParse compares the fast lane's parser with net/http's: what it
// takes, net/http must take too, and understand in the same way.
func FuzzFastParse(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-Y:  z \r\n\r\nhelloGET",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX-Request-Id: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nA: b\nC: d\r\n\r\n", "GET /%2f HTTP/1.1\r\nhost:\ta\r\nForwarded: x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q fastRequest
		if !q.parse(b) {
			return
		}
		br := bufio.NewReader(strings.NewReader(string(b[:q.size])))
		r, err := http.ReadRequest(br)
		if err != nil {
			t.Fatalf("net/http refuses it: %v\n%q", err, b)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != string(q.body) || br.Buffered() != 0 {
			t.Fatalf("body %q, net/http's %q, %v, rest %d\n%q", q.body, body, err, br.Buffered(), b)
		}
		if r.Method != q.method || r.RequestURI != string(q.target) || r.Host != string(q.host) || len(r.TransferEncoding) != 0 || r.Close {
			t.Fatalf("%s %s %s close=%v\n%q", r.Method, r.RequestURI, r.Host, r.Close, b)
		}
		for _, fl := range q.fields[:q.n] {
			name := http.CanonicalHeaderKey(string(fl.name))
			found := false
			for _, v := range r.Header[name] {
				found = found || v == string(fl.value)
			}
			if !found || hopByHop(name) || ours(name) {
				t.Fatalf("field %q: %q, net/http has %q", fl.name, fl.value, r.Header[name])
			}
		}
	})
}

// FuzzFastResponse does the same for responses.
func FuzzFastResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.1 404 Not Found\r\nServer: x\r\nConnection: keep-alive\r\ncontent-length:\t0 \r\nA: b\r\na: c\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi", "HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: y\n\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p fastResponse
		if !p.parse(b) {
			return
		}
		br := bufio.NewReader(bytes.NewReader(b))
		r, err := http.ReadResponse(br, &http.Request{Method: "GET"})
		if err != nil {
			t.Fatalf("net/http refuses it: %v\n%q", err, b)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != string(p.body) || br.Buffered() != 0 {
			t.Fatalf("body %q, net/http's %q, %v, rest %d\n%q", p.body, body, err, br.Buffered(), b)
		}
		if r.StatusCode != p.status || r.ProtoMinor != 1 || r.Close || len(r.TransferEncoding) != 0 || len(r.Trailer) != 0 {
			t.Fatalf("%d close=%v\n%q", r.StatusCode, r.Close, b)
		}
		for _, fl := range p.fields[:p.n] {
			name := http.CanonicalHeaderKey(string(fl.name))
			if !slices.Contains(r.Header[name], string(fl.value)) || hopByHop(name) || !validName(name) || name == "Content-Length" {
				t.Fatalf("field %q: %q, net/http has %q", fl.name, fl.value, r.Header[name])
			}
		}
	})
}

func fastDial(t *testing.T, g *testGateway) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c, bufio.NewReader(c)
}

// TestPipelined sends plain and other requests in one piece: all are answered, in order, though the connection
// changes hands between them.
func TestPipelined(t *testing.T) {
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprint("slow=", slow), func(t *testing.T) {
			addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
				if slow {
					<-time.After(2 * patience) // so that the client is watched
				}
				b, _ := io.ReadAll(r.Body)
				_, _ = io.WriteString(w, r.URL.Path+string(b))
			})
			g := startGateway(t, Config{}, Revision{})
			g.add(t, "a", addr)
			c, br := fastDial(t, g)
			host := "Host: " + testHost + "\r\n"
			_, _ = io.WriteString(c, "GET /1 HTTP/1.1\r\n"+host+"\r\nPOST /2 HTTP/1.1\r\n"+host+"Content-Length: 2\r\n\r\nok")
			var all string
			read := func(method string) {
				resp, err := http.ReadResponse(br, &http.Request{Method: method})
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				all += string(b) + " "
			}
			read("GET")
			_, _ = io.WriteString(c, "HEAD /3 HTTP/1.1\r\n"+host+"\r\n") // while the second is served
			read("POST")
			read("HEAD")
			_, _ = io.WriteString(c, "POST /4 HTTP/1.1\r\n"+host+"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET /5 HTTP/1.1\r\n"+host+"Connection: close\r\n\r\n")
			read("POST")
			read("GET")
			if all != "/1 /2ok  /4x /5 " {
				t.Errorf("responses: %q", all)
			}
			if rest, err := io.ReadAll(br); len(rest) != 0 || err != nil {
				t.Errorf("after the last: %q, %v", rest, err)
			}
		})
	}
}

// TestFastLaneKeepsConnections checks that slow requests do not cost a new connection each.
func TestFastLaneKeepsConnections(t *testing.T) {
	conns := 0
	addr := rawUpstream(t, func(n int, c net.Conn, br *bufio.Reader) {
		conns = n
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			<-time.After(2 * patience)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	g := startGateway(t, Config{}, Revision{})
	g.add(t, "a", addr)
	c := newClient(t)
	for range 3 {
		resp, body := do(t, c, g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, 200)
	}
	if conns != 1 {
		t.Errorf("%d connections to the instance", conns)
	}
}

// TestShutdown checks that a server's Shutdown ends idle connections of the lane.
func TestShutdown(t *testing.T) {
	addr := upstream(t, func(http.ResponseWriter, *http.Request) {})
	g := New(Config{})
	g.SetRevision(Revision{Key: testKey})
	if err := g.SetRoute(testHost, testKey); err != nil {
		t.Fatal(err)
	}
	g.AddInstance(testKey, &testInstance{id: "a", addr: addr})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(g, nil)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(g.FastLane(l)) }()
	c, br := fastDial(t, &testGateway{Gateway: g, addr: l.Addr().String()})
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+testHost+"\r\n\r\n")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	if b, err := io.ReadAll(br); err != nil || len(b) != 0 {
		t.Errorf("the idle connection: %q, %v", b, err)
	}
	if err := g.Drain(ctx); err != nil {
		t.Error(err)
	}
}
