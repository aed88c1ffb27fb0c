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
// one JSON value a line, and times to log. The error is the first that makes
// going on useless: a line that is no request, a function that is gone.
func Run(ctx context.Context, f Function, in io.Reader, out, log io.Writer) (t Totals, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines, end := read(ctx, in)
	for n := 1; ; n++ {
		var line []byte
		select {
		case line = <-lines:
		case err := <-end:
			return t, err
		case <-ctx.Done():
			return t, ctx.Err()
		}
		if len(line) == 0 {
			continue
		}
		payload, err := Payload(line)
		if err != nil {
			return t, fmt.Errorf("invalid request in line %d: %w", n, err)
		}
		t.Requests++
		begin := time.Now()
		reply, took, err := f.Request(ctx, payload)
		var app *guest.AppError
		switch {
		case errors.As(err, &app):
			_, _ = fmt.Fprintf(log, "Request failed due to: %v\n", app.Text)
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

// read reads lines. It cannot be interrupted where in cannot: then it is left
// behind when ctx ends.
func read(ctx context.Context, in io.Reader) (lines <-chan []byte, end <-chan error) {
	out, ended := make(chan []byte), make(chan error, 1)
	go func() {
		s := bufio.NewScanner(in)
		s.Buffer(nil, frame.Max)
		for s.Scan() {
			select {
			case out <- bytes.Clone(bytes.TrimSpace(s.Bytes())):
			case <-ctx.Done():
				return
			}
		}
		if err := s.Err(); err != nil {
			ended <- fmt.Errorf("read requests: %w", err)
			return
		}
		ended <- nil
	}()
	return out, ended
}

// Payload is what a function gets of a request: the field payload of an
// object that has one, else the whole.
func Payload(request []byte) ([]byte, error) {
	if !json.Valid(request) {
		return nil, errors.New("it is not JSON")
	}
	var o struct {
		Payload json.RawMessage `json:"payload"`
	}
	if request[0] == '{' && json.Unmarshal(request, &o) == nil && o.Payload != nil {
		return o.Payload, nil
	}
	return request, nil
}
