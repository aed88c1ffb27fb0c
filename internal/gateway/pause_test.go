package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

func TestPause(t *testing.T) {
	t.Parallel()
	for _, protocol := range []Protocol{HTTP1, H2C} {
		t.Run(string(protocol), func(t *testing.T) {
			var open atomic.Int64
			at := make(chan struct{}, 100)
			release := make(chan struct{})
			s := &http.Server{
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/wait" {
						at <- struct{}{}
						<-release
					}
					_, _ = io.WriteString(w, "ok")
				}),
				ConnState: func(_ net.Conn, st http.ConnState) {
					switch st {
					case http.StateNew:
						open.Add(1)
					case http.StateClosed, http.StateHijacked:
						open.Add(-1)
					}
				},
				Protocols: new(http.Protocols),
			}
			s.Protocols.SetHTTP1(true)
			s.Protocols.SetUnencryptedHTTP2(true)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go func() { _ = s.Serve(l) }()
			t.Cleanup(func() { _ = s.Close() })
			g := startGateway(t, Config{}, Revision{Protocol: protocol})
			g.add(t, "a", l.Addr().String())
			c, ctx := newClient(t), t.Context()

			var work sync.WaitGroup
			call := func(path string) {
				work.Go(func() {
					resp, err := c.Do(g.request(t, "GET", path, nil))
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					if resp.StatusCode != 200 || resp.Header.Get("X-Skep-Start") != "warm" {
						t.Errorf("%s: %s, %v", path, resp.Status, resp.Header)
					}
				})
			}
			call("/wait")
			<-at
			type result struct {
				resume func()
				err    error
			}
			paused := make(chan result, 1)
			go func() {
				resume, err := g.Pause(ctx, testKey, "a", 3)
				paused <- result{resume, err}
			}()
			served := make(chan error, 1)
			go func() { served <- g.Served(ctx, testKey, "a", 1) }()
			call("/")
			call("/")
			eventually(t, "two responses", func() bool { return g.Responses(testKey, "a") == 2 })
			if err := <-served; err != nil {
				t.Error(err)
			}
			select {
			case <-paused:
				t.Fatal("paused with a request in flight")
			default:
			}
			close(release)
			p := <-paused
			if p.err != nil {
				t.Fatal(p.err)
			}
			work.Wait()
			eventually(t, "no connection to a paused instance", func() bool { return open.Load() == 0 })
			if st, _ := g.Stats(testKey); st.Instances != 1 {
				t.Errorf("a paused instance does not count: %+v", st)
			}
			call("/")
			eventually(t, "a request waits", func() bool { st, _ := g.Stats(testKey); return st.Queued == 1 })
			p.resume()
			work.Wait()
			p.resume() // once more does nothing

			ctx, cancel := context.WithCancel(ctx)
			cancel()
			if _, err := g.Pause(ctx, testKey, "a", 100); !errors.Is(err, context.Canceled) {
				t.Errorf("Pause with a ctx that ended: %v", err)
			}
			resume, err := g.Pause(t.Context(), testKey, "a", 0)
			if err != nil {
				t.Fatal(err)
			}
			<-g.RemoveInstance(testKey, "a") // paused: nothing in flight
			resume()
			if st, _ := g.Stats(testKey); st.Instances != 0 {
				t.Errorf("a removed instance came back: %+v", st)
			}
			if _, err := g.Pause(t.Context(), testKey, "a", 0); !errors.Is(err, ErrNoInstance) {
				t.Errorf("Pause without an instance: %v", err)
			}
		})
	}
}

func TestAwaitsEndWithInstance(t *testing.T) {
	t.Parallel()
	addr := upstream(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	g := startGateway(t, Config{}, Revision{})
	g.add(t, "a", addr)
	ended := make(chan error, 1)
	go func() { ended <- g.Served(context.Background(), testKey, "a", 5) }()
	eventually(t, "somebody waits", func() bool {
		rv := g.revision(testKey)
		rv.mu.Lock()
		defer rv.mu.Unlock()
		return len(rv.instances[0].awaits) == 1
	})
	g.RemoveInstance(testKey, "a")
	if err := <-ended; !errors.Is(err, ErrNoInstance) {
		t.Error(err)
	}
}

// A request that breaks every instance it meets must not break all there are.
func TestQueryOfDeath(t *testing.T) {
	t.Parallel()
	g := startGateway(t, Config{}, Revision{ContainerConcurrency: 1})
	var hit atomic.Int64
	for _, id := range []string{"a", "b", "c", "d"} {
		g.add(t, id, upstream(t, func(http.ResponseWriter, *http.Request) {
			hit.Add(1)
			panic(http.ErrAbortHandler)
		}))
	}
	resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
	wantStatus(t, resp, body, http.StatusBadGateway)
	if n := hit.Load(); n > 3 { // the fast lane's try, and two
		t.Errorf("it met %d instances, want at most 3", n)
	}
}
