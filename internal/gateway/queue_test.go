package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestColdStart(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	poked := make(chan RevisionKey, 10)
	g := startGateway(t, Config{OnDemand: func(k RevisionKey) { poked <- k }}, Revision{})
	go func() {
		<-poked
		g.AddInstance(testKey, &testInstance{id: "a", addr: addr, start: StartInfo{Kind: Restored, Phases: []Phase{{"load memory", 1500 * time.Microsecond}}}})
	}()
	c := newClient(t)
	resp, body := do(t, c, g.request(t, "GET", "/", nil))
	wantStatus(t, resp, body, 200)
	if got := resp.Header.Get("X-Skep-Start"); got != "restored" {
		t.Errorf("X-Skep-Start of the first request: %q", got)
	}
	if got := resp.Header.Get("Server-Timing"); !strings.Contains(got, "start-load-memory;dur=1.5") {
		t.Errorf("Server-Timing lacks the start's phase: %q", got)
	}
	resp, _ = do(t, c, g.request(t, "GET", "/", nil))
	if got := resp.Header.Get("X-Skep-Start"); got != "warm" {
		t.Errorf("X-Skep-Start of the second request: %q", got)
	}
	s, ok := g.Stats(testKey)
	if !ok || s.Arrived != 2 || s.InFlight != 0 || s.Queued != 0 || s.Instances != 1 || s.LastRequest.IsZero() {
		t.Errorf("stats: %+v", s)
	}
}

func TestQueue(t *testing.T) {
	release := make(chan struct{})
	addr := upstream(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	t.Run("full", func(t *testing.T) {
		g := startGateway(t, Config{}, Revision{ContainerConcurrency: 1, QueueDepth: 1})
		g.add(t, "a", addr)
		c := newClient(t)
		var wg sync.WaitGroup
		for range 2 { // one runs, one waits
			wg.Go(func() {
				if resp, err := c.Do(g.request(t, "GET", "/", nil)); err != nil {
					t.Error(err)
				} else {
					_ = resp.Body.Close()
				}
			})
		}
		eventually(t, "one runs, one waits", func() bool { s, _ := g.Stats(testKey); return s.InFlight == 1 && s.Queued == 1 })
		resp, body := do(t, c, g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, http.StatusServiceUnavailable)
		if resp.Header.Get("Retry-After") == "" || resp.Header.Get("X-Request-Id") == "" || !strings.Contains(body, resp.Header.Get("X-Request-Id")) {
			t.Errorf("header %v, body %q", resp.Header, body)
		}
		close(release)
		wg.Wait()
	})
	t.Run("timeout", func(t *testing.T) {
		g := startGateway(t, Config{}, Revision{QueueTimeout: time.Millisecond})
		resp, body := do(t, newClient(t), g.request(t, "POST", "/", strings.NewReader("x")))
		wantStatus(t, resp, body, http.StatusGatewayTimeout)
	})
	t.Run("failed start", func(t *testing.T) {
		var g *testGateway
		demand := make(chan struct{}, 1)
		g = startGateway(t, Config{OnDemand: func(RevisionKey) { demand <- struct{}{} }}, Revision{})
		go func() {
			<-demand
			g.FailWaiting(testKey, errors.New("image not found"))
		}()
		resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, http.StatusServiceUnavailable)
		if !strings.Contains(body, "image not found") {
			t.Errorf("the cause is missing: %q", body)
		}
	})
	t.Run("revision removed", func(t *testing.T) {
		var g *testGateway
		demand := make(chan struct{}, 1)
		g = startGateway(t, Config{OnDemand: func(RevisionKey) { demand <- struct{}{} }}, Revision{})
		go func() {
			<-demand
			g.RemoveRevision(testKey)
		}()
		resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, http.StatusServiceUnavailable)
		resp, body = do(t, newClient(t), g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, http.StatusServiceUnavailable)
		g.RemoveRoute(strings.ToUpper(testHost) + ".:80")
		resp, body = do(t, newClient(t), g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, http.StatusNotFound)
	})
	t.Run("client leaves", func(t *testing.T) {
		g := startGateway(t, Config{}, Revision{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := newClient(t).Do(g.request(t, "GET", "/", nil).WithContext(ctx))
			done <- err
		}()
		eventually(t, "it waits", func() bool { s, _ := g.Stats(testKey); return s.Queued == 1 })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("client: %v", err)
		}
		eventually(t, "it left the queue", func() bool { s, _ := g.Stats(testKey); return s.Queued == 0 && s.FailedBeforeDispatched == 1 })
	})
}

func TestDisconnectCancelsUpstream(t *testing.T) {
	for _, proto := range []Protocol{HTTP1, H2C} {
		t.Run(string(proto), func(t *testing.T) {
			arrived, cancelled := make(chan struct{}), make(chan struct{})
			addr := upstream(t, func(_ http.ResponseWriter, r *http.Request) {
				close(arrived)
				<-r.Context().Done()
				close(cancelled)
			})
			g := startGateway(t, Config{}, Revision{Protocol: proto})
			g.add(t, "a", addr)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-arrived; cancel() }()
			_, err := newClient(t).Do(g.request(t, "GET", "/", nil).WithContext(ctx))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("client: %v", err)
			}
			<-cancelled
			eventually(t, "the place is free", func() bool { s, _ := g.Stats(testKey); return s.InFlight == 0 })
		})
	}
}

// TestConcurrencyIsExact lets plain, streaming, upgraded and abandoned requests compete for a few
// places, while instances come and go.
func TestConcurrencyIsExact(t *testing.T) {
	for _, cc := range []int{1, 3} {
		t.Run(fmt.Sprint(cc), func(t *testing.T) {
			const instances, clients, each = 3, 24, 20
			g := startGateway(t, Config{}, Revision{ContainerConcurrency: cc, QueueTimeout: time.Minute})
			var most atomic.Int64
			for i := range instances {
				var now atomic.Int64
				g.add(t, fmt.Sprint(i), upstream(t, func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/leave" {
						// Not counted: its handler learns late that the client left.
						for range 3 {
							_, _ = io.WriteString(w, "data\n")
							_ = http.NewResponseController(w).Flush()
						}
						return
					}
					n := now.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					if n > int64(cc) {
						t.Errorf("%d requests at one instance, the last for %s", n, r.URL.Path)
					}
					// A request is done with its last byte: count it out before that.
					switch r.URL.Path {
					case "/ws":
						c, err := websocket.Accept(w, r, nil)
						if err != nil {
							now.Add(-1)
							return
						}
						typ, msg, err := c.Read(r.Context())
						now.Add(-1) // the next Read closes the connection
						if err == nil {
							_ = c.Write(r.Context(), typ, msg)
							_, _, err = c.Read(r.Context())
						}
						if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
							t.Errorf("WebSocket: %v", err)
						}
						_ = c.CloseNow()
					case "/stream":
						for range 3 {
							_, _ = io.WriteString(w, "data\n")
							_ = http.NewResponseController(w).Flush()
						}
						now.Add(-1)
					default:
						b, _ := io.ReadAll(r.Body)
						now.Add(-1)
						_, _ = w.Write(b)
					}
				}))
			}
			var wg sync.WaitGroup
			for i := range clients {
				wg.Go(func() {
					c := newClient(t)
					for j := range each {
						switch (i + j) % 3 {
						case 0:
							resp, err := c.Do(g.request(t, "POST", "/", strings.NewReader("hello")))
							if err != nil {
								t.Error(err)
								return
							}
							_, _ = io.Copy(io.Discard, resp.Body)
							_ = resp.Body.Close()
						case 1:
							path := "/stream"
							if j%2 == 1 {
								path = "/leave"
							}
							resp, err := c.Do(g.request(t, "GET", path, nil))
							if err != nil {
								t.Error(err)
								return
							}
							if j%2 == 0 {
								_, _ = io.Copy(io.Discard, resp.Body)
							}
							_ = resp.Body.Close()
						case 2:
							ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
							ws, _, err := websocket.Dial(ctx, g.url+"/ws", &websocket.DialOptions{Host: testHost, HTTPClient: c})
							if err != nil {
								cancel()
								t.Error(err)
								return
							}
							if err := ws.Write(ctx, websocket.MessageText, []byte("x")); err != nil {
								t.Error(err)
							}
							if _, _, err := ws.Read(ctx); err != nil {
								t.Error(err)
							}
							if err := ws.Close(websocket.StatusNormalClosure, ""); err != nil {
								t.Error(err)
							}
							cancel()
						}
					}
				})
			}
			wg.Wait()
			eventually(t, "all places are free", func() bool { s, _ := g.Stats(testKey); return s.InFlight == 0 && s.Queued == 0 })
			if most.Load() < int64(cc) {
				t.Errorf("at most %d at one instance: the places were not used", most.Load())
			}
		})
	}
}

func TestRemoveInstanceDrains(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	addr := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	g := startGateway(t, Config{}, Revision{})
	g.add(t, "a", addr)
	if g.AddInstance(testKey, &testInstance{id: "a", addr: addr}) {
		t.Error("an instance was added twice")
	}
	result := make(chan string, 1)
	go func() {
		resp, err := newClient(t).Do(g.request(t, "GET", "/", nil))
		if err != nil {
			result <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		result <- string(b)
	}()
	<-arrived
	done := g.RemoveInstance(testKey, "a")
	select {
	case <-done:
		t.Error("drained while a request runs")
	default:
	}
	if s, _ := g.Stats(testKey); s.Instances != 0 || s.DrainingInstances != 1 {
		t.Errorf("stats while draining: %+v", s)
	}
	close(release)
	<-done
	if got := <-result; got != "done" {
		t.Errorf("the running request got %q", got)
	}
	<-g.RemoveInstance(testKey, "a")
	<-g.RemoveInstance(RevisionKey{"no", "such"}, "a")
}

func TestDrain(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	addr := upstream(t, func(_ http.ResponseWriter, _ *http.Request) { close(arrived); <-release })
	g := startGateway(t, Config{}, Revision{})
	g.add(t, "a", addr)
	var wg sync.WaitGroup
	wg.Go(func() {
		resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
		wantStatus(t, resp, body, 200)
	})
	<-arrived
	drained := make(chan error, 1)
	go func() { drained <- g.Drain(t.Context()) }()
	eventually(t, "new requests are refused", func() bool {
		resp, _ := do(t, newClient(t), g.request(t, "GET", "/no-such-handler", nil).Clone(t.Context()))
		return resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != ""
	})
	select {
	case err := <-drained:
		t.Fatalf("drained while a request runs: %v", err)
	default:
	}
	close(release)
	wg.Wait()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// TestAverage checks the integral with a clock of its own.
func TestAverage(t *testing.T) {
	now := time.Unix(1000, 0)
	g := New(Config{Now: func() time.Time { return now }})
	g.SetRevision(Revision{Key: testKey})
	rv := g.revision(testKey)
	g.AddInstance(testKey, &testInstance{id: "a"})
	before, _ := g.Stats(testKey)
	tk, err := rv.acquire(t.Context(), now, false, nil, func(RevisionKey) {})
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Second)
	rv.release(tk.inst, true)
	rv.leave(now)
	now = now.Add(2 * time.Second)
	after, _ := g.Stats(testKey)
	if got := after.AverageSince(before); got != 0.5 {
		t.Errorf("one request for 2 of 4 s: average %v", got)
	}
	if got := after.AverageSince(after); got != 0 {
		t.Errorf("no time: %v", got)
	}
}

func TestPickPrefersTheFirstWithRoom(t *testing.T) {
	g := New(Config{})
	g.SetRevision(Revision{Key: testKey, ContainerConcurrency: 2})
	for _, id := range []string{"a", "b"} {
		g.AddInstance(testKey, &testInstance{id: id})
	}
	rv := g.revision(testKey)
	var got []string
	for range 4 {
		tk, err := rv.acquire(t.Context(), time.Now(), false, nil, func(RevisionKey) {})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, tk.inst.id)
	}
	if strings.Join(got, "") != "aabb" {
		t.Errorf("picked %v", got)
	}
}
