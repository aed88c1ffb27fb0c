package agent

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// tokenSize is 256 bits.
const tokenSize = 32

// Token is the secret that opens a sandbox's agent. It is in the host's memory
// and the agent's only, and in the snapshots of a sandbox; those who restore
// one replace it.
type Token [tokenSize]byte

// NewToken returns a random token.
func NewToken() Token {
	var t Token
	_, _ = rand.Read(t[:]) // never fails, see crypto/rand
	return t
}

// maxHandshakes bounds connections that have not shown the token yet.
const maxHandshakes = 8

// gate is a listener that lets only the host through. Handshakes run beside
// one another, so that a silent connection keeps nobody out.
type gate struct {
	net.Listener
	host    net.IP
	guest   Guest
	passed  chan net.Conn
	failed  chan error // why Listener ended, once
	closed  chan struct{}
	close   sync.Once
	pending chan struct{}

	mu    sync.Mutex
	token *Token    // nil until the first handshake
	wall  time.Time // the newest that a restored guest was told
	calls map[*callConn]struct{}
}

// callConn is a connection that has passed.
type callConn struct {
	net.Conn
	g *gate
}

// Close closes the connection and has the gate forget it.
func (c *callConn) Close() error {
	c.g.mu.Lock()
	delete(c.g.calls, c)
	c.g.mu.Unlock()
	return c.Conn.Close()
}

func newGate(l net.Listener, host net.IP, guest Guest) *gate {
	g := &gate{
		Listener: l, host: host, guest: guest,
		passed:  make(chan net.Conn),
		failed:  make(chan error, 1),
		closed:  make(chan struct{}),
		pending: make(chan struct{}, maxHandshakes),
		calls:   map[*callConn]struct{}{},
	}
	go g.run()
	return g
}

// Accept returns the next connection that has shown the token.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.passed:
		return c, nil
	case err := <-g.failed:
		return nil, err
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

// Close ends the listener.
func (g *gate) Close() error {
	g.close.Do(func() { close(g.closed) })
	return g.Listener.Close()
}

func (g *gate) run() {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			g.failed <- err
			return
		}
		if !g.fromHost(c) {
			_ = c.Close()
			continue
		}
		select {
		case g.pending <- struct{}{}:
			go g.admit(c)
		default:
			_ = c.Close()
		}
	}
}

// fromHost keeps the function out: it has no address but the guest's own.
func (g *gate) fromHost(c net.Conn) bool {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	return ok && a.IP.Equal(g.host)
}

func (g *gate) admit(c net.Conn) {
	pass, err := g.check(c)
	<-g.pending
	if err != nil || !pass {
		// What a snapshot takes for open nobody would ever close.
		reset(c)
		return
	}
	w := &callConn{c, g}
	g.mu.Lock()
	g.calls[w] = struct{}{}
	g.mu.Unlock()
	select {
	case g.passed <- w:
	case <-g.closed:
		_ = w.Close()
	}
}

// reset closes a connection and leaves nothing of it in the kernel.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// check says if the connection goes on with calls.
func (g *gate) check(c net.Conn) (pass bool, err error) {
	_ = c.SetDeadline(time.Now().Add(handshake))
	var head [tokenSize + 1]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return false, err
	}
	if !g.knows(Token(head[:tokenSize])) {
		_, _ = c.Write([]byte{answerDenied})
		return false, errDenied
	}
	switch op := head[tokenSize]; op {
	case opCalls:
		if err = g.guest.Thaw(); err == nil {
			_, err = c.Write([]byte{answerOK})
		}
	case opSuspend:
		return false, g.suspend(c)
	default:
		return false, fmt.Errorf("unknown operation %d", op)
	}
	if err != nil {
		return false, err
	}
	return true, c.SetDeadline(time.Time{})
}

// knows compares a token with the one that the first handshake brought.
func (g *gate) knows(t Token) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.token == nil {
		g.token = &t
		return true
	}
	return subtle.ConstantTimeCompare(t[:], g.token[:]) == 1
}

// suspend ends all calls, freezes the function when the host says so, and waits
// until the host has closed this connection.
func (g *gate) suspend(c net.Conn) error {
	g.mu.Lock()
	conns := g.calls
	g.calls = map[*callConn]struct{}{}
	g.mu.Unlock()
	for w := range conns {
		reset(w.Conn)
	}
	g.guest.Suspend()
	order := [1]byte{answerOK}
	if _, err := c.Write(order[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, order[:]); err != nil || order[0] != orderFreeze {
		return err
	}
	m, err := g.guest.Freeze()
	if err != nil {
		return err
	}
	if _, err := c.Write(m.encode()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(c, 1))
	return err
}

// restored tells the guest, once, even if its answer was lost: after that, only
// the time.
func (g *gate) restored(t Token, r *Restored) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.token == nil:
		return errDenied
	case subtle.ConstantTimeCompare(r.Token[:], g.token[:]) == 1:
		if !r.Wall.After(g.wall) {
			return nil
		}
		g.wall = r.Wall
		return g.guest.SetClock(r.Wall)
	case subtle.ConstantTimeCompare(t[:], g.token[:]) != 1:
		return errDenied
	}
	if err := g.guest.Restored(r); err != nil {
		return err
	}
	g.token, g.wall = &r.Token, r.Wall
	return nil
}
