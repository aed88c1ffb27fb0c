// Package single is singlevm's loop: requests from a stream of JSON lines, one
// after another, to one function.
package single

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/frame"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// Function takes requests. An error that is no *guest.AppError is final.
type Function interface {
	Request(ctx context.Context, payload []byte) (reply []byte, took time.Duration, err error)
}

// Totals of a run.
type Totals struct{ Requests, Responses int }

// Run reads requests from in until its end, and writes each response to out,
// one JSON value a line, and times to log. A line that is no request is named
// there, and counts as a request without a response; the others go on. The
// error is the first that makes going on useless: a function that is gone, in
// or out that fail.
func Run(ctx context.Context, f Function, in io.Reader, out, log io.Writer) (t Totals, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines, end := read(ctx, in)
	for n := 1; ; n++ {
		var l line
		select {
		case l = <-lines:
		case err := <-end:
			return t, err
		case <-ctx.Done():
			return t, ctx.Err()
		}
		if len(l.text) == 0 && l.err == nil {
			continue
		}
		t.Requests++
		payload, err := l.text, l.err
		if err == nil {
			payload, err = Payload(l.text)
		}
		if err != nil {
			_, _ = fmt.Fprintf(log, "Request failed due to: line %d: %v\n", n, err)
			continue
		}
		begin := time.Now()
		reply, took, err := f.Request(ctx, payload)
		var app *guest.AppError
		switch {
		case errors.As(err, &app):
			_, _ = fmt.Fprintf(log, "Request failed due to: line %d: %v\n", n, app.Text)
		case err != nil:
			return t, fmt.Errorf("request in line %d: %w", n, err)
		default:
			t.Responses++
			_, _ = fmt.Fprintf(log, "request returned in: %d us (guest: %d us)\n", time.Since(begin).Microseconds(), took.Microseconds())
			if _, err := fmt.Fprintf(out, "%s\n", reply); err != nil {
				return t, err
			}
		}
	}
}

// line is one of the input's, without space around it, or why it is none.
type line struct {
	text []byte
	err  error
}

// read reads lines. It cannot be interrupted where in cannot: then it is left
// behind when ctx ends.
func read(ctx context.Context, in io.Reader) (lines <-chan line, end <-chan error) {
	out, ended := make(chan line), make(chan error, 1)
	go func() {
		r := bufio.NewReader(in)
		for {
			l, err := readLine(r)
			if err == nil || len(l.text) > 0 || l.err != nil {
				select {
				case out <- l:
				case <-ctx.Done():
					return
				}
			}
			switch {
			case errors.Is(err, io.EOF):
				ended <- nil
				return
			case err != nil:
				ended <- fmt.Errorf("read requests: %w", err)
				return
			}
		}
	}()
	return out, ended
}

// readLine reads one line. Of one that is too long nothing is kept.
func readLine(r *bufio.Reader) (l line, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if len(l.text)+len(part) > frame.Max {
			l = line{err: fmt.Errorf("it is longer than %d bytes", frame.Max)}
		}
		if l.err == nil {
			l.text = append(l.text, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			l.text = bytes.TrimSpace(l.text)
			return l, err
		}
	}
}

// Payload is what a function gets of a request: the field payload of an
// object that has one, else the whole.
func Payload(request []byte) ([]byte, error) {
	var raw json.RawMessage
	if err := json.Unmarshal(request, &raw); err != nil {
		return nil, fmt.Errorf("it is not JSON: %w", err)
	}
	var o struct {
		Payload json.RawMessage `json:"payload"`
	}
	if bytes.HasPrefix(bytes.TrimLeft(request, " \t\r\n"), []byte("{")) && json.Unmarshal(request, &o) == nil && o.Payload != nil {
		return o.Payload, nil
	}
	return request, nil
}
