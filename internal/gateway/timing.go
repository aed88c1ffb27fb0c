package gateway

import (
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/http/httpguts"
)

// timing is how long the parts of a request took.
type timing struct {
	queue    time.Duration // waiting for an instance
	dial     time.Duration // connecting to it; 0 on a kept connection
	upstream time.Duration // from sending the request to the response's header
}

func (x *exchange) startKind() string {
	if x.cold == nil {
		return "warm"
	}
	return string(x.cold.Kind)
}

// decorate sets the gateway's own response headers.
func (x *exchange) decorate(h http.Header) {
	h["X-Request-Id"] = []string{x.id}
	h["X-Skep-Start"] = []string{x.startKind()}
	h["Server-Timing"] = append(h["Server-Timing"], x.serverTiming())
	if x.last {
		h["Connection"] = []string{"close"}
	}
}

// serverTiming is the Server-Timing header; durations are in milliseconds.
func (x *exchange) serverTiming() string {
	var buf [256]byte
	b := appendTiming(buf[:0], "queue", x.timing.queue)
	b = appendTiming(b, "dial", x.timing.dial)
	b = appendTiming(b, "upstream", x.timing.upstream)
	if x.cold != nil {
		for _, p := range x.cold.Phases {
			b = appendTiming(b, "start-"+token(p.Name), p.Took)
		}
	}
	return string(b)
}

func appendTiming(b []byte, name string, d time.Duration) []byte {
	if len(b) > 0 {
		b = append(b, ", "...)
	}
	b = append(b, name...)
	b = append(b, ";dur="...)
	return strconv.AppendFloat(b, float64(d.Microseconds())/1000, 'f', -1, 64)
}

// token replaces what may not be in a header's token.
func token(s string) string {
	out := []byte(s)
	for i, c := range out {
		if !httpguts.IsTokenRune(rune(c)) {
			out[i] = '-'
		}
	}
	return string(out)
}
