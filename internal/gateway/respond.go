package gateway

import (
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// respond sends an instance's response to the client. pending says that nothing
// of the body has arrived yet, so that a stream's header must not wait for it.
func (x *exchange) respond(resp *http.Response, pending bool) error {
	defer resp.Body.Close()
	x.status = resp.StatusCode
	h := x.w.Header()
	drop := named(resp.Header)
	for name, values := range resp.Header {
		if !hopByHop(name) && !contains(drop, name) {
			h[name] = values
		}
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // or net/http guesses one
	}
	x.decorate(h)
	announced := len(resp.Trailer)
	if announced > 0 {
		h["Trailer"] = []string{trailerNames(resp.Trailer)}
	}
	x.sent = true
	x.w.WriteHeader(resp.StatusCode)
	if resp.Body == http.NoBody || resp.ContentLength == 0 && announced == 0 {
		return nil
	}
	deadlined := false
	flush := func() error {
		if !deadlined { // a client that does not read must not stay for ever
			deadlined = true
			if x.rc == nil {
				x.rc = http.NewResponseController(x.w)
			}
			_ = x.rc.SetWriteDeadline(x.deadline)
		}
		return x.rc.Flush()
	}
	defer func() {
		if deadlined {
			_ = x.rc.SetWriteDeadline(time.Time{})
		}
	}()
	if pending && resp.ContentLength < 0 {
		if err := flush(); err != nil {
			return x.clientFailed(err)
		}
	}
	n, readErr, writeErr := copyFlush(x.w, resp.Body, flush)
	x.bytes = n
	if writeErr != nil {
		return x.clientFailed(writeErr)
	}
	if readErr != nil {
		return x.classify("reading the response's body", readErr)
	}
	if len(resp.Trailer) == 0 {
		return nil
	}
	if err := flush(); err != nil { // trailers need a chunked body
		return x.clientFailed(err)
	}
	for name, values := range resp.Trailer {
		if hopByHop(name) || len(values) == 0 {
			continue
		}
		if len(resp.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
	return nil
}

// clientFailed is the error for a response that could not be sent.
func (x *exchange) clientFailed(error) error {
	if !x.g.cfg.Now().Before(x.deadline) {
		return errTimeout
	}
	return errClientGone
}

func trailerNames(h http.Header) string {
	names := make([]string, 0, len(h))
	for name := range h {
		if !hopByHop(name) && validName(name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

func teTrailers(h http.Header) bool {
	return h["Te"] != nil && httpguts.HeaderValuesContainsToken(h["Te"], "trailers")
}

func validName(name string) bool { return httpguts.ValidHeaderFieldName(name) }

// validMethod is RFC 9110's token.
func validMethod(m string) bool { return m != "" && httpguts.ValidHeaderFieldName(m) }
