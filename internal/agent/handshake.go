package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A connection begins with the token and one byte that says what it is for.
const (
	opCalls   = 'c' // ttrpc follows
	opSuspend = 's' // end the other connections and get ready for a snapshot
)

// orderFreeze follows opSuspend once the guest has come to rest.
const orderFreeze = 'f'

// Answers.
const (
	answerOK     = 'k'
	answerDenied = 'x' // the token is wrong
)

var errDenied = errors.New("the agent refused the token")

// Marks are how many bytes of output the function had written: a clone's host
// reads on from there, so that what came before is reported once.
type Marks struct{ Stdout, Stderr uint64 }

// marksSize is that of the answer to orderFreeze.
const marksSize = 8 + 8

func (m Marks) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, m.Stdout)
	return binary.BigEndian.AppendUint64(b, m.Stderr)
}

// Suspend has the agent end all connections, calls rest, which waits until the
// guest has nothing more to do because of that, and has the agent freeze the
// function. When it returns no connection is left, on either side, not even its
// own. The function goes on with the next connection, and, restored, after
// Resume: nothing of it runs as if it were the one that was saved.
func Suspend(ctx context.Context, dial func(context.Context) (net.Conn, error), t Token, rest func()) (Marks, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := shake(ctx, dial, t, opSuspend)
	if err != nil {
		return Marks{}, fmt.Errorf("agent: suspend: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing more to say
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rest()
	var b [marksSize]byte
	if _, err = conn.Write([]byte{orderFreeze}); err == nil {
		_, err = io.ReadFull(conn, b[:])
	}
	if err != nil {
		return Marks{}, fmt.Errorf("agent: suspend: %w", err)
	}
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1)) // the guest resets it
	}
	if err := ctx.Err(); err != nil {
		return Marks{}, fmt.Errorf("agent: suspend: %w", err)
	}
	return Marks{Stdout: binary.BigEndian.Uint64(b[:]), Stderr: binary.BigEndian.Uint64(b[8:])}, nil
}

// shake dials, shows the token and asks for op. The connection that it returns
// has no deadline.
func shake(ctx context.Context, dial func(context.Context) (net.Conn, error), t Token, op byte) (net.Conn, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial the guest's agent: %w", err)
	}
	// Before AfterFunc: it may move the deadline at once.
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = present(conn, t, op)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// present shows the token to the agent.
func present(c net.Conn, t Token, op byte) error {
	if _, err := c.Write(append(t[:len(t):len(t)], op)); err != nil {
		return fmt.Errorf("show the token: %w", err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return fmt.Errorf("read the agent's answer to the token: %w", err)
	}
	if answer[0] != answerOK {
		return errDenied
	}
	return c.SetDeadline(time.Time{})
}
