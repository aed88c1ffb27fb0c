package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"time"
)

// maxInformational bounds the 1xx responses before the final one.
const maxInformational = 16

// viaHTTP1 sends the request over a kept or a new HTTP/1.1 connection.
//
// One goroutine does it all, where http.Transport hands each request between
// three: see docs/decisions/0005-gateway-data-path.md. Only a streamed body
// gets a goroutine of its own.
func (x *exchange) viaHTTP1(in *instance) (retry bool, err error) {
	if c := in.getIdle(); c != nil {
		retry, err = x.over(c, in)
		if err == nil || !retry {
			return retry, err
		}
		// The instance may have closed the connection just now, which
		// says nothing about it: once more with a new one.
	}
	began := x.g.cfg.Now()
	ctx, cancel := context.WithDeadline(x.r.Context(), x.deadline)
	nc, err := in.dial(ctx)
	cancel()
	x.timing.dial += x.g.cfg.Now().Sub(began)
	if err != nil {
		if x.gone() {
			return false, errClientGone
		}
		if !x.g.cfg.Now().Before(x.deadline) {
			return false, errTimeout
		}
		return !x.touched, err
	}
	return x.over(newUpstreamConn(nc), in)
}

// over sends the request over c, which it keeps for later or closes.
func (x *exchange) over(c *upstreamConn, in *instance) (retry bool, err error) {
	reuse := false
	c.writeUntil = time.Time{}
	_ = c.SetDeadline(x.deadline) // an error shows at the next use
	stop := context.AfterFunc(x.r.Context(), c.abort)
	defer func() {
		if stop() && reuse {
			in.putIdle(c, x.g.cfg.Now())
		} else {
			_ = c.Close()
		}
	}()
	if wait := x.cfg.ResponseStartTimeout; wait > 0 {
		if t := x.g.cfg.Now().Add(wait); t.Before(x.deadline) {
			_ = c.SetReadDeadline(t)
		}
	}
	c.received = false
	sent := x.g.cfg.Now()
	if err := x.writeHead(c); err != nil {
		return false, err
	}
	_, _ = c.bw.Write(x.small)
	if err := c.bw.Flush(); err != nil {
		return !x.touched && x.idempotent(), x.classify("sending the request", err)
	}
	var p *pump
	if x.stream {
		p = x.pump(c)
	}
	resp, err := x.readHead(c, p)
	x.timing.upstream = x.g.cfg.Now().Sub(sent)
	switch {
	case err != nil:
		err = x.classify("waiting for the response", err)
		if _, clientErr := p.end(c); clientErr != nil {
			err = clientErr
		}
		var up *upstreamError
		return errors.As(err, &up) && !c.received && !x.touched && x.idempotent(), err
	case resp.StatusCode == http.StatusSwitchingProtocols:
		_, _ = p.end(c) // what it wanted to send has no meaning any more
		return false, x.tunnel(c, resp)
	}
	if x.cfg.ResponseStartTimeout > 0 {
		_ = c.SetReadDeadline(x.deadline)
		if x.gone() { // the abort may have come before
			c.abort()
		}
	}
	// If the instance answers before it has the whole body, the client's
	// connection may have to end with this response: see pump.end.
	p.settle()
	x.last = p.busy() && x.r.ProtoMajor == 1
	err = x.respond(resp, c.br.Buffered() == 0)
	p.settle()
	if p.busy() {
		// A whole response to half a request: the rest is of no use.
		_, _ = p.end(c)
		return false, err
	}
	whole, _ := p.end(c)
	reuse = err == nil && whole && !resp.Close && c.br.Buffered() == 0
	return false, err
}

// writeHead writes the request line and header into c.bw.
func (x *exchange) writeHead(c *upstreamConn) error {
	r, w := x.r, c.bw
	if !validMethod(r.Method) {
		return &badRequestError{"the request's method is not valid"}
	}
	_, _ = w.WriteString(r.Method)
	_ = w.WriteByte(' ')
	_, _ = w.WriteString(target(r))
	_, _ = w.WriteString(" HTTP/1.1\r\n")
	put := func(name, value string) error {
		if err := writeHeader(w, name, value); err != nil {
			if errors.Is(err, errBadHeader) {
				return &badRequestError{"the request has a header with a line break"}
			}
			return x.classify("sending the request", err)
		}
		return nil
	}
	if err := put("Host", r.Host); err != nil {
		return err
	}
	drop := named(r.Header)
	for name, values := range r.Header {
		if hopByHop(name) || ours(name) || contains(drop, name) || !validName(name) {
			continue
		}
		for _, v := range values {
			if err := put(name, v); err != nil {
				return err
			}
		}
	}
	f := forwardedOf(r, x.g.cfg.TrustForwarded)
	lines := [...][2]string{
		{"X-Request-Id", x.id},
		{"X-Forwarded-For", f.xFor}, {"X-Forwarded-Host", f.xHost},
		{"X-Forwarded-Proto", f.xProto}, {"Forwarded", f.forwarded},
	}
	for _, l := range lines {
		if l[1] == "" {
			continue
		}
		if err := put(l[0], l[1]); err != nil {
			return err
		}
	}
	if err := x.writeFraming(put); err != nil {
		return err
	}
	_, _ = w.WriteString("\r\n") // errors stick, and show at Flush
	return nil
}

// writeFraming writes the headers that say where the body ends. They come
// from what the server understood, never from the client's own headers.
func (x *exchange) writeFraming(put func(name, value string) error) error {
	r := x.r
	var err error
	add := func(name, value string) {
		if err == nil {
			err = put(name, value)
		}
	}
	switch {
	case x.stream && r.ContentLength < 0:
		add("Transfer-Encoding", "chunked")
		if len(r.Trailer) > 0 {
			add("Trailer", trailerNames(r.Trailer))
		}
	case x.stream || x.small != nil:
		add("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	case r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		add("Content-Length", "0")
	}
	if x.stream && expectsContinue(r.Header) {
		add("Expect", "100-continue")
	}
	if teTrailers(r.Header) {
		add("Te", "trailers")
		if x.upgrade == "" {
			add("Connection", "Te")
		}
	}
	if x.upgrade != "" {
		add("Connection", "Upgrade")
		add("Upgrade", x.upgrade)
	}
	return err
}

// readHead reads the header of the final response and passes informational ones on.
func (x *exchange) readHead(c *upstreamConn, p *pump) (*http.Response, error) {
	c.headerLeft = maxResponseHeader
	defer func() { c.headerLeft = -1 }()
	for range maxInformational {
		resp, err := http.ReadResponse(c.br, x.r)
		if err != nil {
			return nil, err
		}
		switch code := resp.StatusCode; {
		case code == http.StatusSwitchingProtocols:
			if x.upgrade == "" {
				return nil, errors.New("it switched protocols without being asked")
			}
			return resp, nil
		case code == http.StatusContinue:
			p.proceed()
		case code < 200:
			if x.r.ProtoAtLeast(1, 1) {
				x.inform(resp.StatusCode, resp.Header)
			}
		default:
			return resp, nil
		}
	}
	return nil, errors.New("it sent too many informational responses")
}

// inform passes an informational response on, such as 103 Early Hints.
func (x *exchange) inform(code int, from http.Header) {
	h := x.w.Header()
	for name, v := range from {
		if !hopByHop(name) {
			h[name] = v
		}
	}
	x.w.WriteHeader(code)
	clear(h)
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

func expectsContinue(h http.Header) bool {
	for _, v := range h["Expect"] {
		if textproto.TrimString(v) != "" {
			return true
		}
	}
	return false
}

// aBit is how long a client's body waits for an instance's 100 Continue:
// HTTP/1.0 servers, and bad ones, never send it.
const aBit = time.Second
