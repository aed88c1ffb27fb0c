package microvm

import (
	"net"
	"sync"

	"github.com/skep-dev/skep/internal/sandbox"
)

// connSet is a sandbox's open connections: a machine that ends says nothing
// to those at the other end, so we must.
type connSet struct {
	mu     sync.Mutex
	conns  map[*conn]struct{}
	closed bool
}

// conn is a TCP connection that its set knows.
type conn struct {
	*net.TCPConn
	set *connSet
}

// Close closes the connection and has the set forget it.
func (c *conn) Close() error {
	c.set.mu.Lock()
	delete(c.set.conns, c)
	c.set.mu.Unlock()
	return c.TCPConn.Close()
}

// add has the set know a connection that was just made.
func (s *connSet) add(c net.Conn) (net.Conn, error) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = t.Close()
		return nil, sandbox.ErrNotRunning
	}
	if s.conns == nil {
		s.conns = map[*conn]struct{}{}
	}
	w := &conn{t, s}
	s.conns[w] = struct{}{}
	return w, nil
}

// reset ends all connections so that nothing of them is left at either end.
func (s *connSet) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.SetLinger(0)
		_ = c.TCPConn.Close()
	}
	clear(s.conns)
}

// close ends all connections, and those that are added later.
func (s *connSet) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		_ = c.TCPConn.Close()
	}
	clear(s.conns)
}
