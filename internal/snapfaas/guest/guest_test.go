package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/frame"
)

// pipe is a TCP connection on loopback.
func pipe(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, err = net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if guest, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

// script plays a guest: it sends the first reply, and each further one after
// a message; it returns what it got.
func script(conn net.Conn, replies ...string) <-chan []string {
	done := make(chan []string, 1)
	go func() {
		var got []string
		for i, r := range replies {
			if i > 0 {
				b, err := frame.U32.Read(conn)
				if err != nil {
					break
				}
				got = append(got, string(b))
			}
			if frame.U32.Write(conn, []byte(r)) != nil {
				break
			}
		}
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
		done <- got
	}()
	return done
}

func TestConversation(t *testing.T) {
	ctx, host, guest := t.Context(), net.Conn(nil), net.Conn(nil)
	host, guest = pipe(t)
	got := script(guest, `{"type":"runtime-ready","runtime":"python3"}`, `{"type":"app-ready"}`,
		`{"type":"response","payload":{"a": 1}}`, `{"type":"error","error":"no"}`, `{"type":"response"}`)
	c, err := Open(ctx, host)
	if err != nil || c.Point() != Language || c.Runtime != "python3" {
		t.Fatalf("%+v, %v", c, err)
	}
	if err := c.LoadApp(ctx); err != nil || c.Point() != App {
		t.Fatalf("%v, %v", c.Point(), err)
	}
	if r, err := c.Request(ctx, []byte(`{"x":2}`)); string(r) != `{"a":1}` || err != nil {
		t.Errorf("%s, %v", r, err)
	}
	var failed *AppError
	if _, err := c.Request(ctx, []byte(`null`)); !errors.As(err, &failed) || failed.Text != "no" {
		t.Errorf("%v", err)
	}
	if r, err := c.Request(ctx, []byte(`[]`)); string(r) != `null` || err != nil {
		t.Errorf("%s, %v", r, err)
	}
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
	want := `{"type":"load-app"}|{"type":"request","payload":{"x":2}}|{"type":"request","payload":null}|{"type":"request","payload":[]}`
	if g := strings.Join(<-got, "|"); g != want {
		t.Errorf("the guest got %s, want %s", g, want)
	}
}

func TestHostileGuest(t *testing.T) {
	for _, test := range []struct{ name, first, second, want string }{
		{"not JSON", "x", "", "does not speak JSON"},
		{"unknown", `{"type":"hello"}`, "", "its first message"},
		{"an error at once", `{"type":"error","error":"no module"}`, "", "no module"},
		{"wrong answer", `{"type":"app-ready"}`, `{"type":"app-ready"}`, "to a request"},
		{"a huge error", `{"type":"app-ready"}`, `{"type":"error","error":"` + strings.Repeat("e", 1<<20) + `"}`, "eeee"},
	} {
		t.Run(test.name, func(t *testing.T) {
			host, guest := pipe(t)
			script(guest, test.first, test.second)
			c, err := Open(t.Context(), host)
			if err == nil {
				_, err = c.Request(t.Context(), []byte("1"))
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > maxError+200 {
				t.Errorf("%.300v, want %q", err, test.want)
			}
		})
	}
}

func TestGuestSilent(t *testing.T) {
	host, _ := pipe(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, host); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x18{\"type\":\"runtime-ready\"}"))
	f.Add([]byte("\x00\x00\x00\x1a{\"type\":\"error\",\"error\":0}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &Conn{conn: readConn{r: strings.NewReader(string(in))}}
		for range 3 {
			if _, err := c.receive(context.Background()); err != nil {
				var app *AppError
				if !errors.As(err, &app) {
					return
				}
			}
		}
	})
}

// readConn is a connection from which bytes come.
type readConn struct {
	net.Conn
	r io.Reader
}

func (c readConn) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c readConn) SetDeadline(time.Time) error { return nil }
