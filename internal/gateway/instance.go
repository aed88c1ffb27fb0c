package gateway

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxIdle is how many idle connections an instance keeps.
	maxIdle = 256
	// idleFor is how long an idle connection is kept. It is checked for
	// having been closed by the instance before each use, so this only bounds the waste.
	idleFor = 30 * time.Second
)

// instance is an Instance with what the gateway knows of it.
type instance struct {
	Instance
	gw    *Gateway
	rv    *revision
	id    string
	start StartInfo
	added time.Time
	done  chan struct{} // closed when removed and without requests

	// Guarded by rv.mu.
	inFlight int
	removed  bool
	served   uint64        // responses
	taken    time.Time     // when it was given its first request
	first    time.Duration // from then until its first response was through
	paused   bool          // takes no requests for a while
	awaits   []*await

	idleMu  sync.Mutex
	idle    []*upstreamConn // the most recently used is last
	closed  bool
	sweeper *time.Timer // set while there are idle connections

	h2      *http.Transport // for H2C, made on first use
	h2mu    sync.Mutex      // a lock of its own: the library closes connections under idleMu
	h2conns map[*h2conn]struct{}
}

func newInstance(g *Gateway, rv *revision, in Instance) *instance {
	return &instance{
		Instance: in, gw: g, rv: rv, id: in.ID(), start: in.Start(),
		added: g.cfg.Now(), done: make(chan struct{}),
	}
}

// dial connects to the instance; its errors are dialErrors.
func (in *instance) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, in.gw.cfg.DialTimeout)
	defer cancel()
	c, err := in.Instance.Dial(ctx)
	if err != nil {
		return nil, &dialError{err}
	}
	return c, nil
}

// getIdle returns a live idle connection or nil.
func (in *instance) getIdle() *upstreamConn {
	for {
		in.idleMu.Lock()
		n := len(in.idle)
		if n == 0 {
			in.idleMu.Unlock()
			return nil
		}
		c := in.idle[n-1]
		in.idle[n-1] = nil
		in.idle = in.idle[:n-1]
		in.idleMu.Unlock()
		if c.quiet() {
			c.reused = true
			return c
		}
		_ = c.Close()
	}
}

// putIdle keeps a connection for the next request, or closes it.
func (in *instance) putIdle(c *upstreamConn, now time.Time) {
	c.idleSince = now
	in.idleMu.Lock()
	if in.closed || len(in.idle) >= maxIdle {
		in.idleMu.Unlock()
		_ = c.Close()
		return
	}
	in.idle = append(in.idle, c)
	if in.sweeper == nil {
		in.sweeper = time.AfterFunc(idleFor, in.sweep)
	}
	in.idleMu.Unlock()
}

// sweep closes the connections that were not used for idleFor.
func (in *instance) sweep() {
	in.idleMu.Lock()
	defer in.idleMu.Unlock()
	if in.closed {
		return
	}
	now := in.gw.cfg.Now()
	n := 0
	for n < len(in.idle) && now.Sub(in.idle[n].idleSince) >= idleFor {
		_ = in.idle[n].Close()
		n++
	}
	in.idle = append(in.idle[:0], in.idle[n:]...)
	clear(in.idle[len(in.idle):cap(in.idle)])
	if len(in.idle) == 0 {
		in.sweeper = nil
		return
	}
	in.sweeper.Reset(max(time.Second, idleFor-now.Sub(in.idle[0].idleSince)))
}

// transport is the HTTP/2 client of the instance. It holds as few connections
// as the instance's limit of streams allows.
func (in *instance) transport() *http.Transport {
	in.idleMu.Lock()
	defer in.idleMu.Unlock()
	if in.h2 == nil {
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		in.h2 = &http.Transport{
			Protocols:              &p,
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return in.dialH2(ctx) },
			DisableCompression:     true,
			IdleConnTimeout:        idleFor,
			MaxResponseHeaderBytes: maxResponseHeader,
		}
	}
	return in.h2
}

// closeIdle closes idle connections now, and those in use when they are done.
func (in *instance) closeIdle() {
	in.idleMu.Lock()
	defer in.idleMu.Unlock()
	in.closed = true
	for _, c := range in.idle {
		_ = c.Close()
	}
	in.idle = nil
	if in.sweeper != nil {
		in.sweeper.Stop()
		in.sweeper = nil
	}
	if in.h2 != nil {
		in.h2.CloseIdleConnections()
	}
}
