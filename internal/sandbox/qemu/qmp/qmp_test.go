package qmp

import (
	"bufio"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// speak answers every command with the next text, after a greeting.
func speak(t *testing.T, greeting string, answers ...string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		if _, err := theirs.Write([]byte(greeting + "\n")); err != nil {
			return
		}
		sc := bufio.NewScanner(theirs)
		for _, a := range answers {
			if !sc.Scan() {
				return
			}
			if a == "" { // say nothing
				sc.Scan()
				return
			}
			if _, err := theirs.Write([]byte(a + "\n")); err != nil {
				return
			}
		}
		sc.Scan()
	}()
	t.Cleanup(func() { _ = ours.Close() })
	return ours
}

const hello = `{"QMP": {"version": {}, "capabilities": []}}`

func TestExecute(t *testing.T) {
	events := make(chan Event, 10)
	c, err := Open(t.Context(), speak(t, hello, `{"return": {}}`,
		`{"event": "STOP", "data": {"a": 1}}`+"\n"+`{"return": {"status": "running"}}`,
		`{"error": {"class": "GenericError", "desc": "no"}}`), func(e Event) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Status string }
	if err := c.Execute(t.Context(), "query-status", nil, &got); err != nil || got.Status != "running" {
		t.Errorf("%+v, %v", got, err)
	}
	if e := <-events; e.Name != "STOP" || string(e.Data) != `{"a": 1}` {
		t.Errorf("event %+v", e)
	}
	var qe *Error
	if err := c.Execute(t.Context(), "x", nil, nil); !errors.As(err, &qe) || qe.Desc != "no" {
		t.Errorf("error %v", err)
	}
	_ = c.Close()
	if err := c.Execute(t.Context(), "x", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestOpen(t *testing.T) {
	for name, greeting := range map[string]string{
		"another greeting": `{"return": {}}`, "not JSON": "hello",
		"too long": `{"QMP": "` + strings.Repeat("x", maxMessage) + `"}`,
	} {
		if _, err := Open(t.Context(), speak(t, greeting), nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, speak(t, hello, ""), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent QEMU: %v", err)
	}
}
