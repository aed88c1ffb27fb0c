package agent

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// tokenSize is 256 bits.
const tokenSize = 32

// Token is the secret that opens a sandbox's agent. It never leaves the host's
// memory but for the agent's.
type Token [tokenSize]byte

// NewToken returns a random token.
func NewToken() Token {
	var t Token
	_, _ = rand.Read(t[:]) // never fails, see crypto/rand
	return t
}

const (
	handshakeOK     = 'k'
	handshakeDenied = 'x'
	// maxHandshakes bounds connections that have not shown the token yet.
	maxHandshakes = 8
)

var errDenied = errors.New("the agent refused the token")

// gate is a listener that lets only the host through. Handshakes run beside
// one another, so that a silent connection keeps nobody out.
type gate struct {
	net.Listener
	host    net.IP
	passed  chan net.Conn
	failed  chan error // why Listener ended, once
	closed  chan struct{}
	close   sync.Once
	pending chan struct{}

	mu    sync.Mutex
	token *Token // nil until the first handshake
}

func newGate(l net.Listener, host net.IP) *gate {
	g := &gate{
		Listener: l, host: host,
		passed:  make(chan net.Conn),
		failed:  make(chan error, 1),
		closed:  make(chan struct{}),
		pending: make(chan struct{}, maxHandshakes),
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
	err := g.check(c)
	<-g.pending
	if err != nil {
		_ = c.Close()
		return
	}
	select {
	case g.passed <- c:
	case <-g.closed:
		_ = c.Close()
	}
}

func (g *gate) check(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(handshake))
	var t Token
	if _, err := io.ReadFull(c, t[:]); err != nil {
		return err
	}
	answer := byte(handshakeOK)
	g.mu.Lock()
	if g.token == nil {
		g.token = &t
	} else if subtle.ConstantTimeCompare(t[:], g.token[:]) != 1 {
		answer = handshakeDenied
	}
	g.mu.Unlock()
	if _, err := c.Write([]byte{answer}); err != nil {
		return err
	}
	if answer != handshakeOK {
		return errDenied
	}
	return c.SetDeadline(time.Time{})
}

// present shows the token to the agent.
func present(c net.Conn, t Token, deadline time.Time) error {
	_ = c.SetDeadline(deadline)
	if _, err := c.Write(t[:]); err != nil {
		return fmt.Errorf("show the token: %w", err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return fmt.Errorf("read the agent's answer to the token: %w", err)
	}
	if answer[0] != handshakeOK {
		return errDenied
	}
	return c.SetDeadline(time.Time{})
}
