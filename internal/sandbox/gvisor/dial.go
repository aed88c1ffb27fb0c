package gvisor

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Dial implements sandbox.Sandbox. The connection ends with the function.
func (s *instance) Dial(ctx context.Context, port int) (net.Conn, error) {
	if err := s.running(); err != nil {
		return nil, fmt.Errorf("dial gVisor sandbox %s: %w", s.spec.ID, err)
	}
	// gVisor's network ends with it, and nobody is left to refuse.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(s.life, func() { cancel(sandbox.ErrNotRunning) })
	defer stop()
	addr := net.JoinHostPort(s.spec.Link.Address.IP.String(), strconv.Itoa(port))
	c, err := netns.Dial(ctx, s.spec.Link.DialNS, "tcp", addr)
	if err != nil {
		if s.life.Err() != nil {
			err = fmt.Errorf("dial gVisor sandbox %s: %w: %w", s.spec.ID, sandbox.ErrNotRunning, err)
		}
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("dial gVisor sandbox %s: unexpected %T", s.spec.ID, c)
	}
	return &conn{TCPConn: tcp, stop: context.AfterFunc(s.life, func() { hangUp(tcp) })}, nil
}

// conn is a connection to a function. When the function ends nobody closes
// the other end, so the driver hangs up.
type conn struct {
	*net.TCPConn
	once sync.Once
	stop func() bool
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() { c.stop() })
	return c.TCPConn.Close()
}

// hangUp ends a connection as its other end would: what has arrived can still
// be read, and then comes the end.
func hangUp(c *net.TCPConn) {
	_ = c.CloseRead()
	_ = c.CloseWrite()
}
