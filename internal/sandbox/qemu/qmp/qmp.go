// Package qmp is a client of QEMU's machine protocol: what the driver needs of
// it. QEMU is trusted less than the host, so everything is bounded.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a message from QEMU.
const maxMessage = 1 << 20

// ErrClosed says that QEMU has closed the connection, as it does at its end.
var ErrClosed = errors.New("qmp: connection closed")

// Event is something that QEMU says unasked.
type Event struct {
	Name string          // such as "SHUTDOWN"
	Data json.RawMessage // an object, or nil
}

// Client is a connection in command mode.
type Client struct {
	conn    net.Conn
	onEvent func(Event)

	calling chan struct{} // one command at a time
	answers chan message
	closed  chan struct{}
	close   sync.Once
}

type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// Error is a command's failure.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("qmp: %.256s: %.1024s", e.Class, e.Desc) }

// Open waits for QEMU's greeting and enters command mode. It owns conn. Events
// are given to onEvent, one at a time, until the connection ends.
func Open(ctx context.Context, conn net.Conn, onEvent func(Event)) (*Client, error) {
	c := &Client{
		conn: conn, onEvent: onEvent,
		calling: make(chan struct{}, 1), answers: make(chan message), closed: make(chan struct{}),
	}
	go c.read()
	select {
	case m := <-c.answers:
		if m.QMP == nil {
			_ = c.Close()
			return nil, errors.New("qmp: QEMU did not greet")
		}
	case <-c.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		_ = c.Close()
		return nil, fmt.Errorf("qmp: wait for QEMU's greeting: %w", ctx.Err())
	}
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error {
	c.close.Do(func() { close(c.closed) })
	return c.conn.Close()
}

func (c *Client) read() {
	defer c.Close() //nolint:errcheck // nothing more to say
	sc := bufio.NewScanner(c.conn)
	sc.Buffer(nil, maxMessage)
	for sc.Scan() {
		var m message
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			return
		}
		if m.Event != "" {
			if c.onEvent != nil {
				c.onEvent(Event{Name: m.Event, Data: m.Data})
			}
			continue
		}
		select {
		case c.answers <- m:
		case <-c.closed:
			return
		}
	}
}

// Execute runs a command. Arguments and result may be nil. After an error that
// is not an *Error the connection is closed: answers would no longer belong to
// their commands.
func (c *Client) Execute(ctx context.Context, command string, arguments, result any) error {
	return c.ExecuteWithFile(ctx, command, arguments, result, nil)
}

// ExecuteWithFile is Execute for a command that takes a descriptor, such as
// add-fd. The file stays the caller's. The connection must be a Unix socket.
func (c *Client) ExecuteWithFile(ctx context.Context, command string, arguments, result any, file *os.File) error {
	select {
	case c.calling <- struct{}{}:
		defer func() { <-c.calling }()
	case <-c.closed:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("qmp: %s: %w", command, ctx.Err())
	}
	select {
	case <-c.closed:
		return ErrClosed
	default:
	}
	req, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	deadline, _ := ctx.Deadline()
	_ = c.conn.SetWriteDeadline(deadline) // zero: none
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.send(append(req, '\n'), file); err != nil {
		_ = c.Close()
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	select {
	case m := <-c.answers:
		if m.Error != nil {
			return m.Error
		}
		if result != nil {
			if err := json.Unmarshal(m.Return, result); err != nil {
				return fmt.Errorf("qmp: %s: %w", command, err)
			}
		}
		return nil
	case <-c.closed:
		return ErrClosed
	case <-ctx.Done():
		_ = c.Close()
		return fmt.Errorf("qmp: %s: %w", command, ctx.Err())
	}
}

func (c *Client) send(b []byte, file *os.File) error {
	if file == nil {
		_, err := c.conn.Write(b)
		return err
	}
	u, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("not a Unix socket, a descriptor cannot be sent")
	}
	n, _, err := u.WriteMsgUnix(b, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && n < len(b) {
		_, err = u.Write(b[n:])
	}
	return err
}
