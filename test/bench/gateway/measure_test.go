package main

import (
	"testing"
	"time"
)

func TestParseWrk(t *testing.T) {
	const good = `Running 3s test @ http://127.0.0.1:1/
  Latency Distribution
     50%    1.08ms
     75%    1.50ms
     90%    2.00ms
     99%  250.78us
  179363 requests in 3.00s, 22.24MB read
Requests/sec:  59783.50
Transfer/sec:      7.41MB
`
	s, err := parseWrk(good)
	if err != nil || s.rps != 59783.5 || s.p50 != 1080*time.Microsecond || s.p99 != 250780*time.Nanosecond || s.requests != 179363 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", good + "  Non-2xx or 3xx responses: 5\n", good + "  Socket errors: connect 0, read 1\n", "Requests/sec:  1.0\n"} {
		if _, err := parseWrk(bad); err == nil {
			t.Errorf("taken: %q", bad)
		}
	}
}

func TestCPUOf(t *testing.T) {
	if d, err := cpuOf(-1); err != nil || d != 0 {
		t.Errorf("of no group: %v, %v", d, err)
	}
}
