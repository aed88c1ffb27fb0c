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

// worker is a fake VM that echoes.
type worker struct{ *fake }

func (w worker) Request(ctx context.Context, p []byte) ([]byte, time.Duration, error) {
	switch string(p) {
	case `"bad"`:
		return nil, 0, &guest.AppError{Text: "bad input"}
	case `"die"`:
		return nil, 0, errors.New("gone")
	case `"wait"`:
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}
	return p, time.Millisecond, nil
}

// serve runs a server until the test ends.
func serve(t *testing.T) (addr string, alive *atomic.Int64, stop func()) {
	t.Helper()
	m := &maker{}
	pool := NewPool(512, map[string]Limits{"echo": {128, 8}, "broken": {128, 1}, "big": {1024, 1}},
		func(ctx context.Context, name string) (Worker, error) {
			f, err := m.launch(ctx, name)
			return worker{f}, err
		})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- NewServer(New(pool, slog.New(slog.DiscardHandler))).Serve(ctx, l, time.Second)
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		pool.Close()
		if n := m.alive.Load(); n != 0 {
			t.Errorf("%d VMs are left", n)
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), &m.alive, stop
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

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"function":"echo","payload":{"a":1}}`))
	f.Add([]byte(`{"function":"x"}`))
	f.Add([]byte(`[`))
	m := &maker{}
	pool := NewPool(512, map[string]Limits{"echo": {128, 8}}, func(ctx context.Context, name string) (Worker, error) {
		vm, err := m.launch(ctx, name)
		return worker{vm}, err
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
