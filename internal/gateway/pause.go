package gateway

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"
)

// ErrNoInstance is returned for an instance that is not there, or goes.
var ErrNoInstance = errors.New("there is no such instance")

// await waits for an instance to have served some responses.
type await struct {
	after uint64
	pause bool       // and to be idle: then it is taken out of rotation
	done  chan error // buffered: the side that ends it never blocks
}

// Served waits until an instance has given that many responses in all. The
// error is ErrNoInstance, or ctx's.
func (g *Gateway) Served(ctx context.Context, key RevisionKey, id string, responses uint64) error {
	return g.await(ctx, key, id, &await{after: responses, done: make(chan error, 1)})
}

// Pause waits until an instance has given that many responses in all and has
// no request, and takes it out of rotation in that moment. Connections to it
// are closed. Requests wait until resume, or go to other instances; resume
// does nothing if the instance was removed meanwhile. The error is
// ErrNoInstance, or ctx's.
func (g *Gateway) Pause(ctx context.Context, key RevisionKey, id string, responses uint64) (resume func(), err error) {
	rv := g.revision(key)
	if err := g.await(ctx, key, id, &await{after: responses, pause: true, done: make(chan error, 1)}); err != nil {
		return nil, err
	}
	return func() { rv.resume(id) }, nil
}

// Responses is how many responses an instance has given; 0 if it is not there.
func (g *Gateway) Responses(key RevisionKey, id string) uint64 {
	if rv := g.revision(key); rv != nil {
		rv.mu.Lock()
		defer rv.mu.Unlock()
		if i := rv.find(id); i >= 0 {
			return rv.instances[i].served
		}
	}
	return 0
}

// FirstResponse is how long an instance took for its first response, from when
// it was given the request; 0 if there was none, or the instance is not there.
func (g *Gateway) FirstResponse(key RevisionKey, id string) time.Duration {
	if rv := g.revision(key); rv != nil {
		rv.mu.Lock()
		defer rv.mu.Unlock()
		if i := rv.find(id); i >= 0 {
			return rv.instances[i].first
		}
	}
	return 0
}

func (g *Gateway) await(ctx context.Context, key RevisionKey, id string, w *await) error {
	rv := g.revision(key)
	if rv == nil {
		return ErrNoInstance
	}
	rv.mu.Lock()
	i := rv.find(id)
	if i < 0 {
		rv.mu.Unlock()
		return ErrNoInstance
	}
	in := rv.instances[i]
	in.awaits = append(in.awaits, w)
	rv.look(in)
	rv.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	rv.mu.Lock()
	at := slices.Index(in.awaits, w)
	if at >= 0 {
		in.awaits = slices.Delete(in.awaits, at, at+1)
	}
	rv.mu.Unlock()
	if at < 0 { // it ended in the same moment
		if err := <-w.done; err == nil && w.pause {
			rv.resume(id)
		}
	}
	return context.Cause(ctx)
}

// look ends the waits that have seen what they wait for. The caller holds
// mu.
func (rv *revision) look(in *instance) {
	for n := 0; n < len(in.awaits); {
		w := in.awaits[n]
		if in.served < w.after || w.pause && (in.inFlight > 0 || in.paused || in.removed) {
			n++
			continue
		}
		in.awaits = slices.Delete(in.awaits, n, n+1)
		if w.pause {
			in.paused = true
			rv.instances = slices.DeleteFunc(rv.instances, func(x *instance) bool { return x == in })
			rv.paused = append(rv.paused, in)
			in.closeIdle()
			in.cut()
		}
		w.done <- nil
	}
	if len(in.awaits) == 0 {
		in.awaits = nil
	}
}

// giveUp ends all waits of an instance that goes. The caller holds mu.
func (rv *revision) giveUp(in *instance) {
	for _, w := range in.awaits {
		w.done <- ErrNoInstance
	}
	in.awaits = nil
}

func (rv *revision) findPaused(id string) int {
	return slices.IndexFunc(rv.paused, func(in *instance) bool { return in.id == id })
}

// resume puts an instance back into rotation.
func (rv *revision) resume(id string) {
	rv.mu.Lock()
	defer rv.mu.Unlock()
	i := rv.findPaused(id)
	if i < 0 {
		return
	}
	in := rv.paused[i]
	rv.paused = slices.Delete(rv.paused, i, i+1)
	in.paused = false
	in.reopen()
	rv.instances = append(rv.instances, in)
	rv.dispatch(in)
}

// reopen undoes closeIdle.
func (in *instance) reopen() {
	in.idleMu.Lock()
	defer in.idleMu.Unlock()
	in.closed = false
	in.h2 = nil // its connections were cut
}

// cut closes the HTTP/2 connections of an instance without requests: the
// library may take some for busy for a moment longer.
func (in *instance) cut() {
	in.h2mu.Lock()
	conns := in.h2conns
	in.h2conns = nil
	in.h2mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
}

// h2conn is a connection that cut closes.
type h2conn struct {
	net.Conn
	in *instance
}

func (c *h2conn) Close() error {
	c.in.h2mu.Lock()
	delete(c.in.h2conns, c)
	c.in.h2mu.Unlock()
	return c.Conn.Close()
}

func (in *instance) dialH2(ctx context.Context) (net.Conn, error) {
	c, err := in.dial(ctx)
	if err != nil {
		return nil, err
	}
	h := &h2conn{c, in}
	in.h2mu.Lock()
	defer in.h2mu.Unlock()
	if in.h2conns == nil {
		in.h2conns = map[*h2conn]struct{}{}
	}
	in.h2conns[h] = struct{}{}
	return h, nil
}
