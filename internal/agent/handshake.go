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
// Only the first kind goes on to ttrpc. The other two belong to snapshots:
// they are the first thing that an emulated guest does after a restore, when
// no code has been translated yet, so they take as little of it as possible.
const (
	opCalls   = 'c' // ttrpc follows
	opSuspend = 's' // end the other connections and get ready for a snapshot
	opRestore = 'r' // a Restored follows; then calls
)

// Answers.
const (
	answerOK     = 'k'
	answerDenied = 'x' // the token is wrong
	answerFailed = 'f' // and why: 2 bytes of length, and the text
)

// maxReason bounds the text after answerFailed.
const maxReason = 1024

var errDenied = errors.New("the agent refused the token")

// Marks are how many bytes of output the function had written: a clone's host
// reads on from there, so that what came before is reported once.
type Marks struct{ Stdout, Stderr uint64 }

// marksSize is that of the answer to opSuspend.
const marksSize = 1 + 8 + 8

func (m Marks) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte{answerOK}, m.Stdout)
	return binary.BigEndian.AppendUint64(b, m.Stderr)
}

// Suspend has the agent end all connections and get ready for a snapshot. When
// it returns none is left, on either side, not even its own.
func Suspend(ctx context.Context, dial func(context.Context) (net.Conn, error), t Token) (Marks, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := shake(ctx, dial, t, opSuspend, nil)
	if err != nil {
		return Marks{}, fmt.Errorf("agent: suspend: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing more to say
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [marksSize - 1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
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

// Resume is Connect for a guest that has just been restored: it shows the
// token that the snapshot knows and gives the guest its new identity, with the
// token to use from now on.
func Resume(ctx context.Context, dial func(context.Context) (net.Conn, error), t Token, r *Restored) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := shake(ctx, dial, t, opRestore, r)
	if err != nil {
		return nil, fmt.Errorf("agent: restore: %w", err)
	}
	return newClient(conn), nil
}

// shake dials, shows the token and asks for op, with r's bytes if it is not
// nil. The connection that it returns has no deadline.
func shake(ctx context.Context, dial func(context.Context) (net.Conn, error), t Token, op byte, r *Restored) (net.Conn, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial the guest's agent: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	deadline, _ := ctx.Deadline()
	err = present(conn, t, op, r, deadline)
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
func present(c net.Conn, t Token, op byte, r *Restored, deadline time.Time) error {
	_ = c.SetDeadline(deadline)
	b := append(append([]byte(nil), t[:]...), op)
	if r != nil {
		body, err := r.encode(time.Now())
		if err != nil {
			return err
		}
		b = append(b, body...)
	}
	if _, err := c.Write(b); err != nil {
		return fmt.Errorf("show the token: %w", err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return fmt.Errorf("read the agent's answer to the token: %w", err)
	}
	switch answer[0] {
	case answerOK:
		return c.SetDeadline(time.Time{})
	case answerFailed:
		return readReason(c)
	default:
		return errDenied
	}
}

func readReason(c io.Reader) error {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return fmt.Errorf("read why the agent failed: %w", err)
	}
	text := make([]byte, min(int(binary.BigEndian.Uint16(size[:])), maxReason))
	if _, err := io.ReadFull(c, text); err != nil {
		return fmt.Errorf("read why the agent failed: %w", err)
	}
	return fmt.Errorf("%.*q", maxReason, text)
}

// answer writes what the guest made of an operation.
func answer(w io.Writer, err error) error {
	b := []byte{answerOK}
	if err != nil {
		text := err.Error()
		text = text[:min(len(text), maxReason)]
		b = append(binary.BigEndian.AppendUint16([]byte{answerFailed}, uint16(len(text))), text...)
	}
	_, err = w.Write(b)
	return err
}
