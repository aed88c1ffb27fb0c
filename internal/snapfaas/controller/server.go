package controller

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/frame"
)

// Limits of a connection.
const (
	// maxConns bounds connections at a time; more wait to be accepted.
	maxConns = 1024
	// frameTimeout is how long the rest of a message may take after its first
	// byte, and a reply to be taken.
	frameTimeout = 30 * time.Second
	// idleTimeout is how long a connection may be silent between messages.
	idleTimeout = 10 * time.Minute
)

// Server takes requests on one port in two protocols: frames of eight bytes of
// length and JSON, and HTTP. The first byte tells them apart: a message that
// is not beyond every limit begins with a zero.
type Server struct {
	c    *Controller
	http *http.Server
	web  *handover

	mu      sync.Mutex
	closing bool
	waiting map[net.Conn]bool // framed connections between two messages
	conns   sync.WaitGroup
	slots   chan struct{}
}

// NewServer makes a server. Serve runs it.
func NewServer(c *Controller) *Server {
	s := &Server{c: c, waiting: map[net.Conn]bool{}, slots: make(chan struct{}, maxConns)}
	s.http = &http.Server{
		ReadHeaderTimeout: frameTimeout, ReadTimeout: idleTimeout,
		WriteTimeout: idleTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
	}
	return s
}

// Serve accepts connections until ctx ends; then requests under way are
// answered, for which it waits at most until drain has passed.
func (s *Server) Serve(ctx context.Context, l net.Listener, drain time.Duration) error {
	s.web = &handover{conns: make(chan net.Conn), addr: l.Addr(), closed: make(chan struct{})}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answerHTTP(work, w, r) })
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.web) }()
	stop := context.AfterFunc(ctx, func() {
		_ = l.Close()
		s.mu.Lock()
		s.closing = true
		for c := range s.waiting {
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
		s.mu.Unlock()
	})
	defer stop()
	err := s.accept(work, l, ctx.Done())
	if ctx.Err() != nil {
		err = nil
	}
	_ = l.Close()
	limit, done := context.WithTimeout(work, drain)
	defer done()
	if serr := s.http.Shutdown(limit); serr != nil {
		_ = s.http.Close()
	}
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	ended := make(chan struct{})
	go func() { s.conns.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-limit.Done():
		cancel() // what still runs, runs no longer
		<-ended
	}
	return err
}

// accept accepts connections, whose requests are ctx's, until stop is closed.
func (s *Server) accept(ctx context.Context, l net.Listener, stop <-chan struct{}) error {
	for {
		select {
		case s.slots <- struct{}{}:
		case <-stop:
			return net.ErrClosed
		}
		c, err := l.Accept()
		if err != nil {
			<-s.slots
			return err
		}
		s.conns.Go(func() {
			defer func() { <-s.slots }()
			s.sort(ctx, c)
		})
	}
}

// sort hands a connection to its protocol.
func (s *Server) sort(ctx context.Context, c net.Conn) {
	r := bufio.NewReader(c)
	if !s.wait(c, r, frameTimeout) {
		_ = c.Close()
		return
	}
	if first, err := r.Peek(1); err == nil && first[0] != 0 {
		_ = c.SetDeadline(time.Time{})
		h := &peeked{Conn: c, r: r, gone: make(chan struct{})}
		if s.web.give(h) {
			<-h.gone // it counts as long as it lives
		}
		return
	}
	defer c.Close() //nolint:errcheck // nothing is buffered
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		if err := s.one(ctx, c, r); err != nil || !s.wait(c, r, idleTimeout) {
			return
		}
	}
}

// wait waits for the first byte of a message, unless the server is closing.
func (s *Server) wait(c net.Conn, r *bufio.Reader, limit time.Duration) bool {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return false
	}
	s.waiting[c] = true
	_ = c.SetReadDeadline(time.Now().Add(limit))
	s.mu.Unlock()
	_, err := r.Peek(1)
	s.mu.Lock()
	delete(s.waiting, c)
	s.mu.Unlock()
	return err == nil
}

// one answers one message.
func (s *Server) one(ctx context.Context, c net.Conn, r io.Reader) error {
	if err := c.SetReadDeadline(time.Now().Add(frameTimeout)); err != nil {
		return err
	}
	b, err := frame.U64.Read(r)
	var reply response
	switch {
	case errors.Is(err, frame.ErrTooLarge):
		reply = response{statusDropped, err.Error()}
	case err != nil:
		return err
	default:
		reply, _ = s.c.answer(ctx, b)
	}
	out, merr := json.Marshal(reply)
	if merr == nil && len(out) > frame.Max {
		out, merr = json.Marshal(response{statusFailed, "the answer is too large to be sent"})
	}
	if merr != nil {
		return merr
	}
	if ctx.Err() == nil {
		if err := c.SetWriteDeadline(time.Now().Add(frameTimeout)); err != nil {
			return err
		}
	}
	return errors.Join(frame.U64.Write(c, out), err)
}

// answerHTTP answers POST / with the messages of the framed protocol, and POST
// /functions/NAME with the function's plain answer to the body. As there, a
// request is ctx's, not the client's: if he leaves, its VM is not lost.
func (s *Server) answerHTTP(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	name, plain := functionOf(r.URL.Path)
	if !plain && r.URL.Path != "/" {
		http.Error(w, "want POST / or POST /functions/NAME", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "want POST", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, frame.Max))
	if err != nil {
		http.Error(w, fmt.Sprintf("body: %v", err), http.StatusRequestEntityTooLarge)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if plain {
		reply, err := s.c.Invoke(ctx, name, body)
		inTime(w)
		if err == nil {
			_, _ = w.Write(append(reply, '\n'))
			return
		}
		status, code := statusOf(err)
		writeJSON(w, response{status, err.Error()}, code)
		return
	}
	reply, code := s.c.answer(ctx, body)
	inTime(w)
	writeJSON(w, reply, code)
}

// inTime has the time to take an answer begin now: the function may have taken
// longer than the server's timeouts, which begin with the request.
func inTime(w http.ResponseWriter) {
	// This server's connections have deadlines: no error.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(frameTimeout))
}

func writeJSON(w http.ResponseWriter, reply response, code int) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(reply) // the client may be gone
}

// handover is a listener that is given its connections.
type handover struct {
	conns  chan net.Conn
	addr   net.Addr
	once   sync.Once
	closed chan struct{}
}

// give hands a connection over, or closes it.
func (h *handover) give(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.closed:
		_ = c.Close()
		return false
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error   { h.once.Do(func() { close(h.closed) }); return nil }
func (h *handover) Addr() net.Addr { return h.addr }

// peeked is a connection whose first bytes have been read already.
type peeked struct {
	net.Conn
	r    *bufio.Reader
	once sync.Once
	gone chan struct{}
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

func (p *peeked) Close() error {
	p.once.Do(func() { close(p.gone) })
	return p.Conn.Close()
}
