// Package gateway routes requests by their Host to instances of functions,
// keeps them waiting in a bounded queue while there are none, and proxies
// them: HTTP/1.1, h2c with gRPC, WebSocket and server-sent events.
//
// It stands alone: the control plane tells it routes, revisions and
// instances, it asks for more through Config.OnDemand and never calls
// anybody else on the path of a request. All methods of Gateway are safe for
// concurrent use and may come in any order.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Gateway is the http.Handler. Make it with New.
type Gateway struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	mu        sync.Mutex // guards changes of routes and revisions as a whole
	routes    sync.Map   // host (string) -> RevisionKey
	revisions sync.Map   // RevisionKey -> *revision

	active   atomic.Int64 // requests in ServeHTTP
	draining atomic.Bool
	idle     chan struct{} // poked when active falls to 0 while draining

	// aborted is closed when a drain ran out of time.
	aborted   context.Context
	abortFunc context.CancelFunc
}

// New makes a Gateway. It panics only if Config.Registerer already has a
// gateway's metrics.
func New(cfg Config) *Gateway {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	if cfg.MaxRetries == 0 {
		cfg.MaxRetries = DefaultMaxRetries
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.OnDemand == nil {
		cfg.OnDemand = func(RevisionKey) {}
	}
	if cfg.OnDialError == nil {
		cfg.OnDialError = func(RevisionKey, string, error) {}
	}
	g := &Gateway{cfg: cfg, log: cfg.Log, idle: make(chan struct{}, 1)}
	g.aborted, g.abortFunc = context.WithCancel(context.Background())
	g.metrics = newMetrics(g, cfg.Registerer)
	return g
}

// SetRevision adds a revision or changes its settings; its instances stay.
func (g *Gateway) SetRevision(r Revision) {
	r = r.withDefaults()
	g.mu.Lock()
	defer g.mu.Unlock()
	if rv := g.revision(r.Key); rv != nil {
		rv.configure(r)
		return
	}
	g.revisions.Store(r.Key, newRevision(r, g.metrics.forRevision(r.Key), g.cfg.Now()))
}

// RemoveRevision forgets a revision, its instances and its metrics. Requests
// that wait get 503; those that run go on. Routes to it stay.
func (g *Gateway) RemoveRevision(key RevisionKey) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, ok := g.revisions.LoadAndDelete(key)
	if !ok {
		return
	}
	v.(*revision).close(errRevisionRemoved)
	g.metrics.forget(key)
}

// SetRoute sends the requests for a host to a revision, which may be set
// later. It errs if host is not a host name.
func (g *Gateway) SetRoute(host string, key RevisionKey) error {
	h, ok := normalizeHost(host)
	if !ok {
		return errors.New("gateway: route to " + key.String() + ": not a host name: " + clip(host))
	}
	g.routes.Store(h, key)
	return nil
}

// RemoveRoute forgets a host.
func (g *Gateway) RemoveRoute(host string) {
	if h, ok := normalizeHost(host); ok {
		g.routes.Delete(h)
	}
}

// AddInstance adds an instance that is ready for requests. It reports false
// if there is no such revision, or it already has an instance of that ID.
func (g *Gateway) AddInstance(key RevisionKey, in Instance) bool {
	g.mu.Lock() // against RemoveRevision
	defer g.mu.Unlock()
	rv := g.revision(key)
	if rv == nil {
		return false
	}
	inst := newInstance(g, rv, in)
	if !rv.add(inst) {
		return false
	}
	g.metrics.started(key, inst.start)
	return true
}

// RemoveInstance stops sending requests to an instance. The channel is
// closed once its last request is done, at once if there is no such instance.
func (g *Gateway) RemoveInstance(key RevisionKey, id string) <-chan struct{} {
	if rv := g.revision(key); rv != nil {
		if done := rv.remove(id); done != nil {
			return done
		}
	}
	done := make(chan struct{})
	close(done)
	return done
}

// FailWaiting answers all requests that wait for an instance of the revision
// with 503 and the cause, because the start of an instance failed.
func (g *Gateway) FailWaiting(key RevisionKey, err error) {
	if rv := g.revision(key); rv != nil {
		rv.failWaiting(&startError{err})
	}
}

// Stats returns what a revision is doing; false if there is no such revision.
func (g *Gateway) Stats(key RevisionKey) (Stats, bool) {
	rv := g.revision(key)
	if rv == nil {
		return Stats{}, false
	}
	return rv.stats(g.cfg.Now()), true
}

// Drain refuses new requests with 503 and waits for those in flight, queued
// and upgraded ones included. When ctx ends it cuts what remains and returns
// ctx's error.
func (g *Gateway) Drain(ctx context.Context) error {
	g.draining.Store(true)
	for g.active.Load() != 0 {
		select {
		case <-g.idle:
		case <-ctx.Done():
			g.abortFunc()
			g.revisions.Range(func(_, v any) bool {
				v.(*revision).failWaiting(errDraining)
				return true
			})
			return context.Cause(ctx)
		}
	}
	return nil
}

func (g *Gateway) revision(key RevisionKey) *revision {
	v, ok := g.revisions.Load(key)
	if !ok {
		return nil
	}
	return v.(*revision)
}

// enter counts a request in; it reports false when the gateway drains.
func (g *Gateway) enter() bool {
	g.active.Add(1)
	return !g.draining.Load()
}

func (g *Gateway) leave() {
	if g.active.Add(-1) == 0 && g.draining.Load() {
		select {
		case g.idle <- struct{}{}:
		default:
		}
	}
}
