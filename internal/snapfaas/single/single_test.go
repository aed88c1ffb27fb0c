package single

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/frame"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// echo answers with the payload, fails on "bad" and is gone after "die".
type echo struct{}

func (echo) Request(_ context.Context, p []byte) ([]byte, time.Duration, error) {
	switch string(p) {
	case `"bad"`:
		return nil, 0, &guest.AppError{Text: "bad input"}
	case `"die"`:
		return nil, 0, errors.New("gone")
	}
	return p, time.Millisecond, nil
}

func TestRun(t *testing.T) {
	for _, test := range []struct {
		in, out, log, err string
		want              Totals
	}{
		{"", "", "", "", Totals{}},
		{"{\"a\":1}\n\n{\"payload\": [1], \"x\": 2}\n7", "{\"a\":1}\n[1]\n7\n", "request returned in: ", "", Totals{3, 3}},
		{"\"bad\"\n1\n", "1\n", "Request failed due to: line 1: bad input", "", Totals{2, 1}},
		{"1\n\"die\"\n2\n", "1\n", "", "line 2: gone", Totals{2, 1}},
		{"1\n{\n2\nnot so\n3", "1\n2\n3\n", "due to: line 4: it is not JSON: invalid character", "", Totals{5, 3}},
		{"1\n" + strings.Repeat("7", frame.Max+1) + "\n2\n", "1\n2\n", "due to: line 2: it is longer than", "", Totals{3, 2}},
		{strings.Repeat(" ", 100_000) + "1", "1\n", "", "", Totals{1, 1}},
		{"{\"payload\":null}\n", "null\n", "", "", Totals{1, 1}},
	} {
		var out, log bytes.Buffer
		got, err := Run(t.Context(), echo{}, strings.NewReader(test.in), &out, &log)
		if got != test.want || out.String() != test.out || !strings.Contains(log.String(), test.log) {
			t.Errorf("%.40q: %+v, %q, %q", test.in, got, out.String(), log.String())
		}
		if (err == nil) != (test.err == "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%.40q: error %v, want %q", test.in, err, test.err)
		}
	}
}

// A terminal's user who presses Ctrl-C has not ended the line.
func TestRunCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	in, w := io.Pipe()
	defer w.Close()
	time.AfterFunc(time.Millisecond, cancel)
	if _, err := Run(ctx, echo{}, in, io.Discard, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzPayload(f *testing.F) {
	f.Add([]byte(`{"payload":{"a":1}}`))
	f.Add([]byte(`[1,2]`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if p, err := Payload(in); err == nil && len(p) == 0 {
			t.Errorf("%q: empty payload", in)
		}
	})
}

// Whatever the lines are, each is answered or named, and the others go on.
func FuzzRun(f *testing.F) {
	f.Add([]byte("{\"a\":1}\n\n{\n[1]"))
	f.Add([]byte("\r\n \"bad\"\r\n{\"payload\":\"die\"}\n1"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out, log bytes.Buffer
		got, err := Run(t.Context(), echo{}, bytes.NewReader(in), &out, &log)
		if err != nil {
			if !strings.Contains(err.Error(), "gone") {
				t.Errorf("%q: %v", in, err)
			}
			return
		}
		lines := 0
		for l := range bytes.SplitSeq(in, []byte("\n")) {
			if len(bytes.TrimSpace(l)) > 0 {
				lines++
			}
		}
		if failed := strings.Count(log.String(), "Request failed due to: line "); got.Requests != lines || got.Responses+failed < lines {
			t.Errorf("%q: %d lines, %+v, %d named", in, lines, got, failed)
		}
	})
}
