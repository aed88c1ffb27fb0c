package controller

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/frame"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// worker is a fake VM that echoes. What it is to hold, it says in held, and
// holds until free is closed.
type worker struct {
	*fake
	held chan<- struct{}
	free <-chan struct{}
}

func (w worker) Request(ctx context.Context, p []byte) ([]byte, time.Duration, error) {
	switch string(p) {
	case `"bad"`:
		return nil, 0, &guest.AppError{Text: "bad input"}
	case `"die"`:
		return nil, 0, errors.New("gone")
	case `"wait"`:
		<-ctx.Done()
		return nil, 0, ctx.Err()
	case `"hold"`:
		w.held <- struct{}{}
		select {
		case <-w.free:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	return p, time.Millisecond, nil
}

// serve runs a server until the test ends.
func serve(t *testing.T) (addr string, alive *atomic.Int64, stop func()) {
	t.Helper()
	s, _ := serveChanged(t, nil, worker{})
	return s.addr, s.alive, s.stop
}

// served is a server that runs.
type served struct {
	addr  string
	alive *atomic.Int64
	pool  *Pool[Worker]
	gone  <-chan struct{} // gets one for each connection that a client has ended
	stop  func()
}

// watched is a listener whose connections tell of their clients' end.
type watched struct {
	net.Listener
	gone chan<- struct{}
}

func (w watched) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	return watchedConn{c, w.gone}, err
}

type watchedConn struct {
	net.Conn
	gone chan<- struct{}
}

func (c watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		select {
		case c.gone <- struct{}{}:
		default:
		}
	}
	return n, err
}

// serveChanged does so with a server that change has changed, and workers like w.
func serveChanged(t *testing.T, change func(*Server), w worker) (*served, <-chan struct{}) {
	t.Helper()
	m := &maker{}
	held := make(chan struct{}, 8)
	pool := NewPool(512, map[string]Limits{"echo": {128, 8}, "broken": {128, 1}, "big": {1024, 1}},
		func(ctx context.Context, name string) (Worker, error) {
			f, err := m.launch(ctx, name)
			return worker{f, held, w.free}, err
		})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	server := NewServer(New(pool, slog.New(slog.DiscardHandler)))
	if change != nil {
		change(server)
	}
	gone := make(chan struct{}, 8)
	go func() { done <- server.Serve(ctx, watched{l, gone}, time.Second) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("it does not stop")
			return
		}
		pool.Close()
		if n := m.alive.Load(); n != 0 {
			t.Errorf("%d VMs are left", n)
		}
	}
	t.Cleanup(stop)
	return &served{l.Addr().String(), &m.alive, pool, gone, stop}, held
}

func TestFramed(t *testing.T) {
	addr, alive, _ := serve(t)
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, test := range []struct{ in, want string }{
		{`{"function":"echo","payload":{"a":1}}`, `{"status":{"SentToVM":"{\"a\":1}"}}`},
		{`{"function":"echo"}`, `{"status":{"SentToVM":"null"}}`},
		{`{"function":"none","payload":1}`, `{"status":"FunctionNotExist"`},
		{`{"function":"broken","payload":1}`, `{"status":"LaunchFailed","error":`},
		{`{"function":"big","payload":1}`, `{"status":"ResourceExhausted"`},
		{`{"function":"echo","payload":"bad"}`, `{"status":"ProcessRequestFailed"`},
		{`{"function":"echo","payload":"die"}`, `{"status":"ProcessRequestFailed"`},
		{`{"payload":1}`, `{"status":"Dropped"`},
		{`not JSON`, `{"status":"Dropped"`},
		{`{"function":"echo","payload":[2]}`, `{"status":{"SentToVM":"[2]"}}`},
	} {
		if err := frame.U64.Write(c, []byte(test.in)); err != nil {
			t.Fatal(err)
		}
		got, err := frame.U64.Read(c)
		if err != nil || !strings.HasPrefix(string(got), test.want) {
			t.Errorf("%s: %s, %v; want %s", test.in, got, err, test.want)
		}
	}
	if n := alive.Load(); n != 1 {
		t.Errorf("%d VMs, want the one that took the last request", n)
	}
}

func TestFramedBeyondTheLimit(t *testing.T) {
	addr, _, _ := serve(t)
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, frame.Max+1)); err != nil {
		t.Fatal(err)
	}
	if got, err := frame.U64.Read(c); err != nil || !strings.Contains(string(got), "Dropped") {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := frame.U64.Read(c); !errors.Is(err, io.EOF) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestHTTP(t *testing.T) {
	addr, _, _ := serve(t)
	for _, test := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"POST", "/", `{"function":"echo","payload":7}`, 200, `{"status":{"SentToVM":"7"}}`},
		{"POST", "/functions/echo", `{"a":1}`, 200, `{"a":1}`},
		{"POST", "/functions/echo", ``, 200, `null`},
		{"POST", "/functions/echo", `{`, 502, `not JSON`},
		{"POST", "/functions/none", `1`, 404, `FunctionNotExist`},
		{"POST", "/functions/big", `1`, 503, `ResourceExhausted`},
		{"POST", "/functions/a/b", `1`, 404, `want POST`},
		{"GET", "/", ``, 405, `want POST`},
		{"POST", "/", `x`, 400, `Dropped`},
	} {
		req, err := http.NewRequest(test.method, "http://"+addr+test.path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != test.code || !strings.Contains(string(b), test.want) {
			t.Errorf("%s %s %s: %d %s, want %d %s", test.method, test.path, test.body, res.StatusCode, b, test.code, test.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A stop ends connections that are silent at once, and requests after the
// drain time.
func TestStop(t *testing.T) {
	addr, _, stop := serve(t)
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	if err := frame.U64.Write(conns[0], []byte(`{"function":"echo","payload":1}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := frame.U64.Read(conns[0]); err != nil {
		t.Fatal(err)
	}
	if err := frame.U64.Write(conns[1], []byte(`{"function":"echo","payload":"wait"}`)); err != nil {
		t.Fatal(err)
	}
	stop()
	for i, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		for {
			_, err := frame.U64.Read(c)
			if err == nil {
				continue // the last answer
			}
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("connection %d is still open", i)
			}
			break
		}
	}
}

// A stop does not wait for connections that are idle, as many as there may be.
func TestStopWhenFull(t *testing.T) {
	const most = 3
	s, _ := serveChanged(t, func(s *Server) { s.slots = make(chan struct{}, most) }, worker{})
	for range most {
		client := &http.Client{Transport: &http.Transport{}} // with a connection of its own
		defer client.CloseIdleConnections()
		res, err := client.Post("http://"+s.addr+"/functions/echo", "application/json", strings.NewReader("1"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	s.stop()
}

// A client that leaves does not take the VM with him.
func TestClientLeaves(t *testing.T) {
	free := make(chan struct{})
	s, held := serveChanged(t, nil, worker{free: free})
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.addr+"/functions/echo", strings.NewReader(`"hold"`))
		if err == nil {
			_, err = http.DefaultClient.Do(req) //nolint:bodyclose // there is none
		}
		left <- err
	}()
	<-held
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the client was answered: %v", err)
	}
	<-s.gone // and so the server knows
	close(free)
	waitFor(t, "the VM to be idle again", func() bool { all, idle := s.pool.Stats("echo"); return all == 1 && idle == 1 })
	if n := s.alive.Load(); n != 1 {
		t.Errorf("%d VMs are alive", n)
	}
}

// A function may take longer than the server's timeouts.
func TestSlowFunction(t *testing.T) {
	const short = 100 * time.Millisecond
	free := make(chan struct{})
	s, held := serveChanged(t, func(s *Server) { s.http.WriteTimeout, s.http.ReadTimeout = short, short }, worker{free: free})
	go func() {
		<-held
		time.AfterFunc(3*short, func() { close(free) })
	}()
	res, err := http.Post("http://"+s.addr+"/functions/echo", "application/json", strings.NewReader(`"hold"`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "\"hold\"\n" {
		t.Errorf("%q, %v", b, err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"function":"echo","payload":{"a":1}}`))
	f.Add([]byte(`{"function":"x"}`))
	f.Add([]byte(`[`))
	m := &maker{}
	pool := NewPool(512, map[string]Limits{"echo": {128, 8}}, func(ctx context.Context, name string) (Worker, error) {
		vm, err := m.launch(ctx, name)
		return worker{fake: vm}, err
	})
	c := New(pool, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // for the payload that waits
	f.Fuzz(func(t *testing.T, in []byte) {
		reply, code := c.answer(ctx, in)
		out, err := json.Marshal(reply)
		if err != nil || (code == 200) != bytes.Contains(out, []byte(statusSent)) {
			t.Errorf("%q: %d %s, %v", in, code, out, err)
		}
	})
}
