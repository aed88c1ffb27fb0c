package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapfaas/frame"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// Serve is the child: it reads its configuration from in, runs the machine
// until in or ctx ends, and frees it. What has been told the parent is no error
// here.
func Serve(ctx context.Context, d sandbox.Driver, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	messages, failed := make(chan message), make(chan error, 1)
	go func() {
		defer cancel() // the parent is gone, or wants us to end
		for {
			m, err := receive(in)
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	err := serve(ctx, d, messages, out)
	if ctx.Err() == nil || err == nil {
		return err
	}
	select {
	case ferr := <-failed:
		if errors.Is(ferr, io.EOF) {
			return nil
		}
		if errors.Is(err, context.Canceled) { // that is all that has happened
			err = nil
		}
		return errors.Join(err, fmt.Errorf("what the parent says is no message (firerunner is started by singlevm and multivm, not by hand): %w", ferr))
	default:
		return err
	}
}

func serve(ctx context.Context, d sandbox.Driver, messages <-chan message, out io.Writer) (err error) {
	fail := func(err error) error {
		return send(out, message{Kind: kindFailed, Error: err.Error()})
	}
	var first message
	select {
	case first = <-messages:
	case <-ctx.Done():
		return ctx.Err()
	}
	if first.Config == nil {
		return fail(errors.New("firerunner is started by singlevm and multivm, not by hand: its first message must be a configuration"))
	}
	c := first.Config
	if err := c.Validate(); err != nil {
		return fail(err)
	}
	limited, cancel := context.WithTimeout(ctx, c.Boot)
	m, err := boot(limited, d, c)
	cancel()
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, m.stop(ctx)) }()
	if m.conn != nil {
		m.ready.Point = m.conn.Point()
	}
	if err := send(out, message{Kind: kindReady, Ready: &m.ready}); err != nil || c.Dump.Exit {
		return err
	}
	for {
		select {
		case r := <-messages:
			if goOn, err := m.answer(ctx, r, out); err != nil || !goOn {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// answer handles one request, and says if the machine can take another.
func (m *machine) answer(ctx context.Context, r message, out io.Writer) (goOn bool, err error) {
	begin := time.Now()
	limited, cancel := context.WithTimeout(ctx, m.conf.Request)
	defer cancel()
	reply, recorded, err := m.request(limited, r.Payload)
	took := time.Since(begin)
	var app *guest.AppError
	switch {
	case errors.As(err, &app):
		return true, send(out, message{Kind: kindAppError, Error: app.Text, Took: took, Recorded: recorded})
	case err != nil:
		if limited.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("no answer within %v: %w", m.conf.Request, err)
		}
		return false, send(out, message{Kind: kindFailed, Error: err.Error()})
	}
	return true, send(out, message{Kind: kindResponse, Payload: reply, Took: took, Recorded: recorded})
}

func send(w io.Writer, m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return frame.U32.Write(w, b)
}

func receive(r io.Reader) (m message, err error) {
	b, err := frame.U32.Read(r)
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}
