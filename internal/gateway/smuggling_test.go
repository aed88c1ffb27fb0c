package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSmuggling sends requests whose end is in dispute. Each is either
// refused, or reaches the instance as exactly one request.
func TestSmuggling(t *testing.T) {
	const evil = "GET /evil HTTP/1.1\r\nHost: " + testHost + "\r\n\r\n"
	host := "Host: " + testHost + "\r\n"
	cases := []struct {
		name, raw string
		want      string // the beginning of the response's status, or "" for a closed connection
	}{
		{"CL and TE", "POST / HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n", "200 or 400"},
		{"TE and CL with a rest", "POST / HTTP/1.1\r\n" + host + fmt.Sprintf("Content-Length: %d\r\n", 5+len(evil)) + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "200 or 400"},
		{"two different CLs", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0\r\nContent-Length: 60\r\n\r\n" + evil, "400"},
		{"CL list", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0, 60\r\n\r\n" + evil, "400"},
		{"CL with sign", "POST / HTTP/1.1\r\n" + host + "Content-Length: +0\r\n\r\n" + evil, "400"},
		{"CL with space before the colon", "POST / HTTP/1.1\r\n" + host + "Content-Length : 60\r\n\r\n" + evil, "400"},
		{"TE with space before the colon", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + evil, "400"},
		{"TE obfuscated", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + evil, "501"},
		{"TE twice", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + evil, "501"},
		{"TE with a tab", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\tchunked, x\r\n\r\n0\r\n\r\n" + evil, "501"},
		{"bad chunk size", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + evil, "400 or 502"},
		{"chunk too long", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n" + evil, "400 or 502"},
		{"huge chunk size", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n" + evil, "400 or 502"},
		{"folded header", "GET / HTTP/1.1\r\n" + host + "X: a\r\n Content-Length: 60\r\nConnection: close\r\n\r\n", "200 or 400"},
		{"line feed in a header", "GET / HTTP/1.1\r\n" + host + "X: a\nContent-Length: 0\r\nConnection: close\r\n\r\n", "200 or 400"},
		{"carriage return in a header", "GET / HTTP/1.1\r\n" + host + "X: a\rContent-Length: 60\r\n\r\n" + evil, "400"},
		{"NUL in a header", "GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n" + evil, "400"},
		{"bad header name", "GET / HTTP/1.1\r\n" + host + "X y: a\r\n\r\n" + evil, "400"},
		{"two hosts", "GET / HTTP/1.1\r\n" + host + "Host: other\r\n\r\n" + evil, "400"},
		{"no host", "GET / HTTP/1.1\r\n\r\n" + evil, "400"},
		{"space in the target", "GET /a b HTTP/1.1\r\n" + host + "\r\n" + evil, "400"},
		{"control character in the target", "GET /a\x01b HTTP/1.1\r\n" + host + "\r\n" + evil, "400"},
		{"space before the header", "GET / HTTP/1.1\r\n Content-Length: 60\r\n" + host + "\r\n" + evil, "400"},
		{"header too large", "GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 2*maxRequestHeader) + "\r\n\r\n", "431"},
		{"h2c upgrade", "GET / HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", "200"},
		{"body on GET", "GET / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nConnection: close\r\n\r\nhello", "200"},
		{"absolute target", "GET http://" + testHost + "/x HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", "200"},
		{"absolute target to another host", "GET http://other.example.com/evil HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", "404"},
	}
	var mu sync.Mutex
	var seen []string
	addr := upstream(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.URL.Path)
		if r.Header.Get("Upgrade") != "" || r.Header.Get("Http2-Settings") != "" {
			t.Errorf("an upgrade to h2c was forwarded: %v", r.Header)
		}
	})
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			g := startGateway(t, Config{}, Revision{})
			g.add(t, "a", addr)
			mu.Lock()
			seen = nil
			mu.Unlock()
			c, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			go func() { _, _ = io.WriteString(c, tc.raw) }()
			br := bufio.NewReader(c)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if !strings.Contains(tc.want, fmt.Sprint(resp.StatusCode)) {
				t.Errorf("status %d, want %s", resp.StatusCode, tc.want)
			}
			_ = c.(*net.TCPConn).CloseWrite()
			rest, _ := io.ReadAll(br)
			if bytes.Contains(rest, []byte(" 200 ")) {
				t.Errorf("there was a second response: %q", rest)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, path := range seen {
				if path == "/evil" {
					t.Error("the smuggled request reached the instance")
				}
			}
		})
	}
}

// TestTargetsFromHTTP2 checks paths that HTTP/2 can carry and a request line cannot.
func TestTargetsFromHTTP2(t *testing.T) {
	for in, want := range map[string]string{
		"/a b":                 "/a%20b",
		"/?a b HTTP/1.1":       "/?a%20b%20HTTP/1.1",
		"/é":                   "/%C3%A9",
		"/a%2Fb?x=%20":         "/a%2Fb?x=%20",
		"http://h/x?y":         "/x?y",
		"*":                    "*",
		"/\r\nX: y":            "/%0D%0AX:%20y",
		"//double/slash?a=//b": "//double/slash?a=//b",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RequestURI = in
		if strings.HasPrefix(in, "http") {
			r = httptest.NewRequest("GET", in, nil)
		}
		if in == "*" {
			r.URL.Path, r.URL.RawPath = "*", ""
		}
		if got := target(r); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestHeaderLineBreaksStop(t *testing.T) {
	g := New(Config{})
	g.SetRevision(Revision{Key: testKey})
	if err := g.SetRoute(testHost, testKey); err != nil {
		t.Fatal(err)
	}
	addr := upstream(t, func(http.ResponseWriter, *http.Request) { t.Error("it reached the instance") })
	g.AddInstance(testKey, &testInstance{id: "a", addr: addr})
	for name, set := range map[string]func(*http.Request){
		"header": func(r *http.Request) { r.Header["X-A"] = []string{"b\r\nEvil: 1"} },
		"method": func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\nX:" },
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = testHost
		set(r)
		w := httptest.NewRecorder()
		if g.ServeHTTP(w, r); w.Code != http.StatusBadRequest {
			t.Errorf("%s: status %d", name, w.Code)
		}
	}
}
