package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// viaH2C sends the request as a stream of an HTTP/2 connection. Streams of
// one connection are independent, so here http.Transport does the work.
func (x *exchange) viaH2C(in *instance) (retry bool, err error) {
	ctx, cancel := context.WithDeadlineCause(x.r.Context(), x.deadline, errTimeout)
	defer cancel()
	ctx, cancelCause := context.WithCancelCause(ctx)
	defer cancelCause(nil)
	stopAbort := context.AfterFunc(x.g.aborted, func() { cancelCause(errDraining) })
	defer stopAbort()
	var started *time.Timer
	if wait := x.cfg.ResponseStartTimeout; wait > 0 {
		started = time.AfterFunc(wait, func() { cancelCause(errTimeout) })
		defer started.Stop()
	}
	tr := &h2Trace{x: x, began: x.g.cfg.Now()}
	body := &h2Body{r: x.r.Body}
	out := x.h2Request(httptrace.WithClientTrace(ctx, tr.hooks()), body)
	resp, err := in.transport().RoundTrip(out)
	hints := tr.close() // no hook runs from here on
	x.timing.dial += hints
	x.timing.upstream = x.g.cfg.Now().Sub(tr.began) - hints
	if err != nil {
		x.touched = x.touched || body.touched.Load()
		var dial *dialError
		switch {
		case x.gone():
			return false, errClientGone
		case errors.Is(context.Cause(ctx), errTimeout), errors.Is(err, context.DeadlineExceeded):
			return false, errTimeout
		case errors.As(err, &dial):
			return !x.touched, dial
		}
		return !x.touched && x.idempotent(), &upstreamError{"waiting for the response", err}
	}
	if started != nil {
		started.Stop()
	}
	err = x.respond(resp, resp.ContentLength < 0)
	if err != nil && errors.Is(context.Cause(ctx), errTimeout) {
		err = errTimeout
	}
	return false, err
}

// h2Request is the request for the instance.
func (x *exchange) h2Request(ctx context.Context, body *h2Body) *http.Request {
	r := x.r
	u := &url.URL{Scheme: "http", Host: "instance", Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery}
	out := (&http.Request{
		Method: r.Method, URL: u, Host: r.Host, Header: make(http.Header, len(r.Header)+6),
		ContentLength: r.ContentLength, Trailer: r.Trailer,
	}).WithContext(ctx)
	if x.stream {
		out.Body = body
	} else {
		out.ContentLength = 0
	}
	drop := named(r.Header)
	for name, values := range r.Header {
		if !hopByHop(name) && !ours(name) && !contains(drop, name) {
			out.Header[name] = values
		}
	}
	if x.stream && expectsContinue(r.Header) {
		out.Header["Expect"] = []string{"100-continue"}
	}
	if teTrailers(r.Header) {
		out.Header["Te"] = []string{"trailers"}
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // or http.Transport adds its own
	}
	f := forwardedOf(r, x.g.cfg.TrustForwarded)
	out.Header["X-Request-Id"] = []string{x.id}
	if f.xFor != "" {
		out.Header["X-Forwarded-For"] = []string{f.xFor}
	}
	out.Header["X-Forwarded-Host"] = []string{f.xHost}
	out.Header["X-Forwarded-Proto"] = []string{f.xProto}
	out.Header["Forwarded"] = []string{f.forwarded}
	return out
}

// h2Body knows whether a body has been read. It does not close it: that is
// the server's, and a retry may need it.
type h2Body struct {
	r       io.Reader
	touched atomic.Bool
}

func (b *h2Body) Read(p []byte) (int, error) {
	b.touched.Store(true)
	return b.r.Read(p)
}

func (b *h2Body) Close() error { return nil }

// h2Trace watches a round trip. The hooks run in the transport's goroutines,
// possibly after RoundTrip has returned.
type h2Trace struct {
	x     *exchange
	began time.Time

	mu     sync.Mutex
	closed bool
	dial   time.Duration
}

func (t *h2Trace) hooks() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			t.mu.Lock()
			defer t.mu.Unlock()
			if !t.closed && !i.Reused {
				t.dial = t.x.g.cfg.Now().Sub(t.began)
			}
		},
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			t.mu.Lock()
			defer t.mu.Unlock()
			if !t.closed && code != http.StatusContinue && t.x.r.ProtoAtLeast(1, 1) {
				t.x.inform(code, http.Header(header))
			}
			return nil
		},
	}
}

func (t *h2Trace) close() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	return t.dial
}
