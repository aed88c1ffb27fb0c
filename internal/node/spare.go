package node

import (
	"net"
	"sync"
	"time"
)

// spareTime is how long a connection waits to be used.
const spareTime = 500 * time.Millisecond

// spare holds the connection with which a restored function proved that it is
// ready, for its first request: to take in another costs the function most of
// what a small request does, where its processor is emulated.
type spare struct {
	mu    sync.Mutex
	conn  net.Conn
	timer *time.Timer
}

// put keeps c until it is taken or has waited for too long.
func (s *spare) put(c net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return c.Close()
	}
	s.conn = c
	s.timer = time.AfterFunc(spareTime, func() {
		if c := s.take(); c != nil {
			_ = c.Close()
		}
	})
	return nil
}

// take returns the connection, or nil if there is none any more.
func (s *spare) take() net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conn
	if c != nil {
		s.timer.Stop()
		s.conn = nil
	}
	return c
}
