// Package guest is the host's side of the conversation with a runtime in a
// guest (package runtimes has the other side).
//
// The guest listens and the host connects: a listener survives a snapshot, a
// connection does not. Messages are JSON objects in frames of package frame.
// The guest speaks first and says at which snapshot point it is; from then on
// each message of the host gets one of the guest.
//
//	guest: {"type":"runtime-ready","runtime":"python3"}    the language is up
//	host:  {"type":"load-app"}                             the app's disk is mounted
//	guest: {"type":"app-ready"}                            the app is imported
//	host:  {"type":"request","payload":...}
//	guest: {"type":"response","payload":...} or {"type":"error","error":"..."}
package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/frame"
)

const (
	// Port is the TCP port on which the runtime listens.
	Port = 1234
	// AppDir is where the app is in the guest.
	AppDir = "/srv"
)

// maxError bounds what a guest may say about an error, in bytes.
const maxError = 8 << 10

// closeTimeout bounds how long the guest may take to close its end.
const closeTimeout = 5 * time.Second

// Point is a snapshot point.
type Point string

// The snapshot points.
const (
	// Language: the runtime is up, and has no app.
	Language Point = "language"
	// App: the app has been imported.
	App Point = "app"
)

// AppError is an error of one request: the app's, in most cases. The connection
// is as good as before.
type AppError struct{ Text string }

func (e *AppError) Error() string { return "the function failed: " + e.Text }

type message struct {
	Type    string          `json:"type"`
	Runtime string          `json:"runtime,omitempty"`
	Error   string          `json:"error,omitempty"`
	Payload json.RawMessage `json:"payload,omitempty"`
}

// Conn is a connection to a runtime. It is not safe for concurrent use.
type Conn struct {
	conn  net.Conn
	point Point
	// Runtime is the name that the runtime gives itself.
	Runtime string
}

// Open takes over a new connection and reads the guest's first message.
func Open(ctx context.Context, conn net.Conn) (*Conn, error) {
	c := &Conn{conn: conn}
	m, err := c.receive(ctx)
	if err == nil {
		switch m.Type {
		case "runtime-ready":
			c.point = Language
		case "app-ready":
			c.point = App
		default:
			err = fmt.Errorf("its first message is %.40q", m.Type)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the guest's runtime: %w", err), conn.Close())
	}
	c.Runtime = fmt.Sprintf("%.40s", m.Runtime)
	return c, nil
}

// Point is the snapshot point that the guest has reached.
func (c *Conn) Point() Point { return c.point }

// LoadApp has the guest import the app below AppDir.
func (c *Conn) LoadApp(ctx context.Context) error {
	m, err := c.call(ctx, message{Type: "load-app"})
	if err != nil {
		return fmt.Errorf("load the app: %w", err)
	}
	if m.Type != "app-ready" {
		return fmt.Errorf("load the app: the guest answers %.40q", m.Type)
	}
	c.point = App
	return nil
}

// Request hands a payload, which is JSON, to the app and returns its answer,
// which is JSON too. The error is an *AppError if the app has failed, or the
// payload is too large; after any other the connection is of no use.
func (c *Conn) Request(ctx context.Context, payload []byte) ([]byte, error) {
	m, err := c.call(ctx, message{Type: "request", Payload: payload})
	if err != nil {
		return nil, err
	}
	if m.Type != "response" {
		return nil, fmt.Errorf("the guest answers %.40q to a request", m.Type)
	}
	if m.Payload == nil {
		return []byte("null"), nil
	}
	var line bytes.Buffer
	if err := json.Compact(&line, m.Payload); err != nil {
		return nil, err
	}
	return line.Bytes(), nil
}

// Close ends the conversation, and waits until the guest has closed its end,
// so that no snapshot has half a connection in it. It closes in any case.
func (c *Conn) Close(ctx context.Context) error {
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		stop := c.limit(ctx, closeTimeout)
		_, err := io.Copy(io.Discard, io.LimitReader(c.conn, frame.Max))
		stop()
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return errors.Join(fmt.Errorf("wait for the guest to hang up: %w", err), c.conn.Close())
		}
	}
	return c.conn.Close()
}

// Abort closes the connection at once.
func (c *Conn) Abort() error { return c.conn.Close() }

func (c *Conn) call(ctx context.Context, m message) (message, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return message{}, fmt.Errorf("payload: %w", err)
	}
	stop := c.limit(ctx, 0)
	err = frame.U32.Write(c.conn, b)
	stop()
	if errors.Is(err, frame.ErrTooLarge) { // nothing was written
		return message{}, &AppError{err.Error()}
	}
	if err != nil {
		return message{}, errors.Join(err, ctx.Err())
	}
	return c.receive(ctx)
}

func (c *Conn) receive(ctx context.Context) (m message, err error) {
	stop := c.limit(ctx, 0)
	b, err := frame.U32.Read(c.conn)
	stop()
	if err != nil {
		return m, errors.Join(err, ctx.Err())
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("the guest does not speak JSON: %w", err)
	}
	if m.Type == "error" {
		return m, &AppError{m.Error[:min(len(m.Error), maxError)]}
	}
	return m, nil
}

// limit makes reads and writes end with ctx, and within d if that is not 0.
func (c *Conn) limit(ctx context.Context, d time.Duration) (stop func()) {
	deadline, ok := ctx.Deadline()
	if t := time.Now().Add(d); d > 0 && (!ok || t.Before(deadline)) {
		deadline = t
	}
	_ = c.conn.SetDeadline(deadline) // the zero time means none
	after := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { after() }
}
