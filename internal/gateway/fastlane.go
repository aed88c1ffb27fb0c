package gateway

import (
	"context"
	"net"
	"runtime/debug"
	"sync"
	"time"
)

// fastBuffer is how large a request of the fast lane may be, body included.
const fastBuffer = 8 << 10

// FastLane wraps the listener of a gateway's server. It serves the plainest
// requests, which are most, on the goroutine that read them: whole HTTP/1.1
// requests that arrived in one piece, for which there is an instance right
// now. The first request of any other kind goes, with its connection and
// not a byte consumed, to the server that accepts from the returned
// listener; so everything difficult happens in one place, net/http.
//
//	srv := gateway.NewServer(g, log)
//	err := srv.Serve(g.FastLane(l))
//
// With Config.TrustForwarded there is no lane and l is returned. Closing the listener, as the server's Shutdown does, ends the lane's
// idle connections; Drain waits for its requests.
func (g *Gateway) FastLane(l net.Listener) net.Listener {
	if g.cfg.TrustForwarded {
		return l
	}
	f := &fastLane{Listener: l, g: g, others: make(chan net.Conn), closed: make(chan struct{}), conns: map[*fastConn]struct{}{}}
	context.AfterFunc(g.aborted, f.cut)
	go f.accept()
	return f
}

type fastLane struct {
	net.Listener
	g      *Gateway
	others chan net.Conn // for the server
	closed chan struct{} // by Close, or when accepting failed
	once   sync.Once
	err    error // why accepting failed, before closed

	mu    sync.Mutex
	conns map[*fastConn]struct{}
}

// Accept returns a connection that needs the server.
func (f *fastLane) Accept() (net.Conn, error) {
	select {
	case c := <-f.others:
		return c, nil
	case <-f.closed:
		if f.err != nil {
			return nil, f.err
		}
		return nil, net.ErrClosed
	}
}

// Close stops listening and ends idle connections.
func (f *fastLane) Close() error {
	err := f.Listener.Close()
	f.shut(nil)
	return err
}

func (f *fastLane) shut(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.closed)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.conn.SetReadDeadline(aLongTimeAgo) // wakes those that wait for a request
	}
}

// cut ends all connections.
func (f *fastLane) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.conn.Close()
	}
}

func (f *fastLane) isClosed() bool {
	select {
	case <-f.closed:
		return true
	default:
		return false
	}
}

func (f *fastLane) accept() {
	wait := time.Millisecond
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			if te, ok := err.(interface{ Temporary() bool }); ok && te.Temporary() { // as net/http: out of file descriptors
				f.g.log.Warn("accepting a connection", "error", err, "again_in", wait)
				select {
				case <-time.After(wait):
				case <-f.closed:
					return
				}
				wait = min(2*wait, time.Second)
				continue
			}
			f.shut(err)
			return
		}
		wait = time.Millisecond
		fc := newFastConn(f, c)
		f.mu.Lock()
		f.conns[fc] = struct{}{}
		f.mu.Unlock()
		go f.run(fc)
	}
}

func (f *fastLane) run(c *fastConn) {
	give := false
	func() {
		// As net/http does for its handlers: one request must not end the daemon.
		defer func() {
			if p := recover(); p != nil {
				f.g.log.Error("panic while serving a request", "remote", c.conn.RemoteAddr(), "panic", p, "stack", string(debug.Stack()))
			}
		}()
		give = c.serve()
	}()
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
	if !give || f.isClosed() {
		_ = c.conn.Close()
		return
	}
	// The deadlines are the server's from here on.
	_ = c.conn.SetDeadline(time.Time{})
	select {
	case f.others <- &givenConn{Conn: c.conn, first: c.rest()}:
	case <-f.closed:
		_ = c.conn.Close()
	}
}

// givenConn is a connection of which something was read already.
type givenConn struct {
	net.Conn
	first []byte
}

// Read returns what was read before first.
func (c *givenConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		if c.first = c.first[n:]; len(c.first) == 0 {
			c.first = nil
		}
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite lets the server and tunnels end one direction.
func (c *givenConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}
