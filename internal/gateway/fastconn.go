package gateway

import (
	"bufio"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// patience is how long the fast lane waits for a response before it
	// watches whether the client is still there.
	patience = 20 * time.Millisecond
	// deadlineSlack is how stale a client connection's deadlines may be, which
	// saves setting them for each request.
	deadlineSlack = time.Second
)

// fastConn is a client's connection in the fast lane.
type fastConn struct {
	f    *fastLane
	g    *Gateway
	conn net.Conn
	ip   string

	buf       [fastBuffer]byte
	r, w      int // buf[r:w] was read but not consumed
	out       *bufio.Writer
	deadline  time.Time // of conn, as last set
	req       fastRequest
	resp      fastResponse
	http      http.Request // for http.ReadResponse, which asks for the method
	watch     *watch       // of the request being served, nil until it is slow
	rawHost   string       // the last Host, and what became of it
	host      string
	forwarded string
}

func newFastConn(f *fastLane, c net.Conn) *fastConn {
	fc := &fastConn{f: f, g: f.g, conn: c}
	fc.out = bufio.NewWriterSize(c, connBuffer)
	if ip, _, err := net.SplitHostPort(c.RemoteAddr().String()); err == nil {
		fc.ip = ip
	}
	return fc
}

// rest is what was read but not consumed.
func (c *fastConn) rest() []byte { return append([]byte(nil), c.buf[c.r:c.w]...) }

// serve serves requests until the connection ends, which false says, or goes
// to the server.
func (c *fastConn) serve() bool {
	for {
		if c.r == c.w {
			c.r, c.w = 0, 0
			c.extend()
			if c.f.isClosed() { // after extend: Close sets a deadline
				return false
			}
			n, err := c.conn.Read(c.buf[:])
			if n == 0 && err != nil {
				return false
			}
			c.w = n
		}
		if !c.req.parse(c.buf[c.r:c.w]) {
			return true
		}
		switch c.exchange() {
		case fastNext:
			c.r += c.req.size
			if w := c.watch; w != nil {
				c.watch = nil
				if !c.absorb(w) {
					return false
				}
			}
		case fastGive:
			return true
		case fastEnd:
			return false
		}
	}
}

// extend moves the deadlines of an idle connection.
func (c *fastConn) extend() {
	now := time.Now()
	if c.deadline.Sub(now) < clientIdleTimeout-deadlineSlack {
		c.deadline = now.Add(clientIdleTimeout)
		_ = c.conn.SetDeadline(c.deadline)
	}
}

// absorb adds what the watch has read of the next request.
func (c *fastConn) absorb(w *watch) bool {
	if !w.end() {
		return false
	}
	c.deadline = time.Time{}
	if c.w+w.n > len(c.buf) {
		copy(c.buf[:], c.buf[c.r:c.w])
		c.r, c.w = 0, c.w-c.r
	}
	if c.w+w.n > len(c.buf) {
		return false // more than we asked for while a response was due
	}
	c.w += copy(c.buf[c.w:], w.buf[:w.n])
	c.extend()
	return !c.f.isClosed()
}

// watch reads from a client while its request is slow, to learn that it left.
type watch struct {
	conn net.Conn
	buf  [1]byte
	n    int
	gone atomic.Bool // the client left
	done chan struct{}
}

// watchFor calls left when the client leaves.
func watchFor(conn net.Conn, left func()) *watch {
	w := &watch{conn: conn, done: make(chan struct{})}
	_ = conn.SetReadDeadline(time.Time{})
	go func() {
		defer close(w.done)
		n, err := conn.Read(w.buf[:])
		w.n = n
		if err != nil && !isTimeout(err) {
			w.gone.Store(true)
			left()
		}
	}()
	return w
}

// left reports whether the client is known to be gone.
func (w *watch) left() bool { return w.gone.Load() }

// end stops watching and reports whether the client is still there.
func (w *watch) end() bool {
	_ = w.conn.SetReadDeadline(aLongTimeAgo)
	<-w.done
	return !w.gone.Load()
}
