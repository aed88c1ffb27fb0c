package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/autoscale"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
	"github.com/skep-dev/skep/internal/sandbox"
)

const patience = 30 * time.Second

// machine launches functions within the test: HTTP servers, reached through
// the real gateway.
type machine struct {
	t       *testing.T
	handler http.Handler

	mu       sync.Mutex
	fail     error         // of every launch
	block    chan struct{} // launches wait for it
	launches int
	live     map[string]*function
	wrap     func(*function) Instance // nil: as it is
}

type function struct {
	m      *machine
	id     string
	server *httptest.Server
	ready  time.Time
	end    sync.Once
	done   chan struct{}
	err    error
}

func (m *machine) Launch(ctx context.Context, _ node.Launch) (Instance, error) {
	m.mu.Lock()
	m.launches++
	id, fail, block := fmt.Sprintf("%016x", m.launches), m.fail, m.block
	m.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	f := &function{m: m, id: id, server: httptest.NewServer(m.handler), ready: time.Now(), done: make(chan struct{})}
	m.mu.Lock()
	m.live[id] = f
	wrap := m.wrap
	m.mu.Unlock()
	if wrap != nil {
		return wrap(f), nil
	}
	return f, nil
}

func (f *function) ID() string { return f.id }
func (f *function) Phases() []sandbox.Phase {
	return []sandbox.Phase{{Name: "ready", Took: time.Millisecond}}
}
func (f *function) ReadyAt() time.Time    { return f.ready }
func (f *function) Done() <-chan struct{} { return f.done }
func (f *function) ExitError() error      { return f.err }

func (f *function) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", f.server.Listener.Addr().String())
}

func (f *function) Stop(context.Context, time.Duration) error {
	f.exit(nil)
	return nil
}

func (f *function) exit(err error) {
	f.end.Do(func() {
		f.err = err
		f.m.mu.Lock()
		delete(f.m.live, f.id)
		f.m.mu.Unlock()
		f.server.CloseClientConnections()
		f.server.Close()
		close(f.done)
	})
}

func (m *machine) running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.live)
}

func (m *machine) launched() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.launches
}

func (m *machine) set(fail error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = fail
}

func (m *machine) crash(err error) {
	m.mu.Lock()
	var all []*function
	for _, f := range m.live {
		all = append(all, f)
	}
	m.mu.Unlock()
	for _, f := range all {
		f.exit(err)
	}
}

type world struct {
	*machine
	fleet   *Fleet
	gateway *gateway.Gateway
	mu      sync.Mutex
	events  []Event
}

func newWorld(t *testing.T, h http.HandlerFunc) *world {
	if h == nil {
		h = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }
	}
	w := &world{machine: &machine{t: t, handler: h, live: map[string]*function{}}}
	log := slog.New(slog.DiscardHandler)
	w.gateway = gateway.New(gateway.Config{Log: log, OnDemand: func(k gateway.RevisionKey) { w.fleet.Poke(k) }})
	w.fleet = New(Config{Node: w.machine, Traffic: w.gateway, Log: log, OnEvent: func(e Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := w.fleet.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		if n := w.running(); n != 0 {
			t.Errorf("%d instances run after Close", n)
		}
	})
	return w
}

func (w *world) deploy(name string, concurrency int, p autoscale.Policy) gateway.RevisionKey {
	key := gateway.RevisionKey{Namespace: "default", Name: name}
	w.gateway.SetRevision(gateway.Revision{Key: key, ContainerConcurrency: concurrency, QueueTimeout: patience})
	if err := w.gateway.SetRoute(name+".test", key); err != nil {
		w.t.Fatal(err)
	}
	if p.Target == 0 {
		p.Target = 100
		if concurrency > 0 {
			p.Target = float64(concurrency)
		}
	}
	w.fleet.Set(Spec{Key: key, Policy: p, Grace: time.Second})
	return key
}

func (w *world) get(name string) (int, string) {
	r := httptest.NewRequest(http.MethodGet, "http://"+name+".test/", nil)
	rec := httptest.NewRecorder()
	w.gateway.ServeHTTP(rec, r)
	return rec.Code, rec.Body.String()
}

func (w *world) wantOK(name string) {
	w.t.Helper()
	if code, body := w.get(name); code != http.StatusOK {
		w.t.Fatalf("%s: %d %s", name, code, body)
	}
}

// eventually waits for a state that comes by itself.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

func TestFromZeroToZero(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	key := w.deploy("a", 0, autoscale.Policy{IdleAfter: 50 * time.Millisecond})
	if w.launched() != 0 {
		t.Error("an instance without demand")
	}
	w.wantOK("a")
	if n := w.fleet.Ready(key); n != 1 {
		t.Errorf("Ready = %d after a request", n)
	}
	eventually(t, "no instance when idle", func() bool { return w.running() == 0 && w.fleet.Ready(key) == 0 })
	w.wantOK("a")
}

func TestScaleWithDemandUpToMax(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) { <-hold; fmt.Fprint(rw, "ok") })
	key := w.deploy("a", 1, autoscale.Policy{MaxScale: 3, IdleAfter: 50 * time.Millisecond})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { w.wantOK("a") })
	}
	eventually(t, "three instances", func() bool { return w.fleet.Ready(key) == 3 })
	if n := w.launched(); n != 3 {
		t.Errorf("%d launches, want MaxScale of 3", n)
	}
	close(hold)
	wg.Wait()
	eventually(t, "no instance when idle", func() bool { return w.running() == 0 })
}

func TestMinScale(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	key := w.deploy("a", 1, autoscale.Policy{MinScale: 2, IdleAfter: time.Millisecond})
	eventually(t, "two instances without demand", func() bool { return w.fleet.Ready(key) == 2 })
	w.deploy("a", 1, autoscale.Policy{MinScale: 0, IdleAfter: time.Millisecond})
	eventually(t, "none once MinScale is 0", func() bool { return w.running() == 0 })
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.set(&node.StartError{Reason: node.ReasonExited, Err: errors.New("exit code 3"), Tail: []string{"boom"}})
	key := w.deploy("a", 0, autoscale.Policy{IdleAfter: time.Second})
	code, body := w.get("a")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "boom") {
		t.Errorf("the request that waited got %d %q", code, body)
	}
	if n := w.launched(); n != 1 {
		t.Errorf("%d launches", n)
	}
	// While it backs off, requests are told at once.
	if code, body := w.get("a"); code != http.StatusServiceUnavailable || !strings.Contains(body, "boom") {
		t.Errorf("a request during the back-off got %d %q", code, body)
	}
	if n := w.launched(); n != 1 {
		t.Errorf("%d launches during the back-off", n)
	}
	w.set(nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.fleet.Ensure(ctx, key); err != nil {
		t.Errorf("Ensure after the back-off: %v", err)
	}
	w.wantOK("a")
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) != 1 || w.events[0].Reason != node.ReasonExited || w.events[0].Key != key {
		t.Errorf("events: %+v", w.events)
	}
}

// A request whose instance ends soon after its start is answered by another;
// when that one ends, too, it is not started for ever.
func TestFirstCrashLosesNoRequest(t *testing.T) {
	t.Parallel()
	var w *world
	var mu sync.Mutex
	var crashes int
	ending := map[string]bool{} // by address: a request may come again over a new connection
	w = newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		at := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
		mu.Lock()
		if crashes > 0 {
			crashes--
			ending[at] = true
			go w.crash(errors.New("ended"))
		}
		end := ending[at]
		mu.Unlock()
		if end {
			<-r.Context().Done()
			return
		}
		fmt.Fprint(rw, "ok")
	})
	next := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		crashes = n
	}
	w.deploy("a", 0, autoscale.Policy{IdleAfter: time.Minute})
	next(1)
	w.wantOK("a")
	if n := w.launched(); n != 2 {
		t.Errorf("%d launches, want 2", n)
	}
	next(1)
	if code, body := w.get("a"); code == http.StatusOK {
		t.Errorf("after two that ended: %d %q", code, body)
	}
	if n := w.launched(); n != 2 {
		t.Errorf("%d launches without a back-off, want 2", n)
	}
}

func TestCrashLoopBacksOffFurther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	key := w.deploy("a", 0, autoscale.Policy{MinScale: 1, IdleAfter: time.Second})
	r := w.fleet.get(key)
	for n := 1; n <= 2; n++ {
		eventually(t, "an instance", func() bool { return w.fleet.Ready(key) == 1 })
		w.crash(errors.New("ended"))
		eventually(t, "the crash to be seen", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.failures == n
		})
		r.mu.Lock()
		if got, want := r.notBefore.Sub(r.failedAt), firstBackoff<<(n-1); got != want {
			t.Errorf("after crash %d: backs off for %s, want %s", n, got, want)
		}
		r.mu.Unlock()
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backOff(now.Add(24*time.Hour), errors.New("ended"))
	if r.failures != 1 {
		t.Errorf("failures a day apart are taken for a loop: %d", r.failures)
	}
}

func TestEnsure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	key := w.deploy("a", 0, autoscale.Policy{IdleAfter: 10 * time.Second})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for range 2 { // the second has nothing to do
		if err := w.fleet.Ensure(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.launched(); n != 1 {
		t.Errorf("%d launches, want 1", n)
	}
	if err := w.fleet.Ensure(ctx, gateway.RevisionKey{Name: "other"}); err == nil {
		t.Error("Ensure of an unknown revision: no error")
	}
	w.machine.mu.Lock()
	w.block = make(chan struct{})
	w.machine.mu.Unlock()
	key = w.deploy("b", 0, autoscale.Policy{})
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := w.fleet.Ensure(short, key); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ensure past its deadline: %v", err)
	}
}

func TestRemoveDrains(t *testing.T) {
	t.Parallel()
	entered, hold := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
		entered <- struct{}{}
		<-hold
		fmt.Fprint(rw, "ok")
	})
	key := w.deploy("a", 0, autoscale.Policy{IdleAfter: 10 * time.Second})
	var wg sync.WaitGroup
	wg.Go(func() { w.wantOK("a") })
	<-entered
	gone := w.fleet.Remove(key)
	// The name is free at once: the next of this name has instances of its own.
	w.deploy("a", 0, autoscale.Policy{IdleAfter: 10 * time.Second})
	wg.Go(func() { w.wantOK("a") })
	<-entered
	if n := w.running(); n != 2 {
		t.Errorf("%d instances, want the draining one and the new one", n)
	}
	select {
	case <-gone:
		t.Error("gone while a request runs")
	default:
	}
	close(hold)
	wg.Wait()
	<-gone
	if n := w.fleet.Ready(key); n != 1 {
		t.Errorf("the new one's instances after the old one has gone: %d", n)
	}
	<-w.fleet.Remove(gateway.RevisionKey{Name: "unknown"})
}

func TestRemoveCancelsStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.block = make(chan struct{})
	key := w.deploy("a", 0, autoscale.Policy{IdleAfter: time.Second})
	waited := make(chan error, 1)
	go func() { waited <- w.fleet.Ensure(context.Background(), key) }()
	eventually(t, "a launch", func() bool { return w.launched() == 1 })
	<-w.fleet.Remove(key)
	if err := <-waited; !errors.Is(err, errRemoved) {
		t.Errorf("Ensure of a removed revision: %v", err)
	}
}

func TestSlowStartsDoNotBlockOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.fleet.starts = make(chan struct{}, 1)
	w.fleet.slot = time.Millisecond
	w.block = make(chan struct{})
	w.deploy("a", 0, autoscale.Policy{MinScale: 1})
	eventually(t, "a launch that waits", func() bool { return w.launched() == 1 })
	w.deploy("b", 0, autoscale.Policy{MinScale: 1})
	eventually(t, "another launch meanwhile", func() bool { return w.launched() == 2 })
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	var wg sync.WaitGroup
	for n := range 8 {
		name := fmt.Sprintf("f%d", n%4)
		wg.Go(func() {
			for range 10 {
				key := w.deploy(name, 1, autoscale.Policy{IdleAfter: time.Millisecond, MaxScale: 2})
				w.get(name)
				w.crash(errors.New("ended"))
				if n >= 4 {
					w.fleet.Remove(key)
				}
			}
		})
	}
	wg.Wait()
}

func TestClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.deploy("a", 0, autoscale.Policy{MinScale: 1})
	eventually(t, "an instance", func() bool { return w.running() == 1 })
	if err := w.fleet.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.deploy("b", 0, autoscale.Policy{MinScale: 1})
	if n := w.running(); n != 0 {
		t.Errorf("%d instances in a closed fleet", n)
	}
}
