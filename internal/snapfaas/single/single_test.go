package single

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

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
		{"\"bad\"\n1\n", "1\n", "Request failed due to: bad input", "", Totals{2, 1}},
		{"1\n\"die\"\n2\n", "1\n", "", "line 2: gone", Totals{2, 1}},
		{"1\n{\n", "1\n", "", "invalid request in line 2", Totals{1, 1}},
		{"{\"payload\":null}\n", "null\n", "", "", Totals{1, 1}},
	} {
		var out, log bytes.Buffer
		got, err := Run(t.Context(), echo{}, strings.NewReader(test.in), &out, &log)
		if got != test.want || out.String() != test.out || !strings.Contains(log.String(), test.log) {
			t.Errorf("%q: %+v, %q, %q", test.in, got, out.String(), log.String())
		}
		if (err == nil) != (test.err == "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%q: error %v, want %q", test.in, err, test.err)
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
