package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"
)

const (
	// retryWait bounds how long a request that failed at an instance waits
	// for another one: as long as micro-VMs boot on emulated processors.
	retryWait = 30 * time.Second
	// smallBody is the size up to which a body is read before an instance
	// is taken: slow senders then hold no place, and the request can be tried again.
	smallBody = 16 << 10
	// smallBodyTimeout is how long a client may take to send one.
	smallBodyTimeout = time.Minute
)

// exchange is one request and its response.
type exchange struct {
	g   *Gateway
	rv  *revision
	w   http.ResponseWriter
	r   *http.Request
	rc  *http.ResponseController
	id  string
	cfg Revision

	start    time.Time
	deadline time.Time // of everything, once there was an instance
	timing   timing
	cold     *StartInfo

	upgrade string // protocol to switch to, "" if none
	small   []byte // the body, if it was read in advance
	stream  bool   // there is a body which was not
	touched bool   // some of that body may have been read
	cut     bool   // reading it was cut short, which may cancel r.Context()
	last    bool   // the client's connection ends with this response
	broke   int    // instances that broke off while they had the request

	sent   bool // the response's header was sent to the client
	status int
	bytes  int64 // of the response's body
}

// ServeHTTP routes, queues and proxies one request.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ok := g.enter()
	defer g.leave()
	id := requestID(r.Header)
	if !ok {
		w.Header()["Connection"] = []string{"close"}
		writeError(w, http.StatusServiceUnavailable, errDraining.Error(), id, 1)
		return
	}
	rv, status, text := g.route(r)
	if rv == nil {
		g.metrics.unrouted.WithLabelValues(classOf(status)).Inc()
		writeError(w, status, text, id, 0)
		return
	}
	x := &exchange{g: g, rv: rv, w: w, r: r, id: id, start: g.cfg.Now()}
	err := x.serve()
	end := g.cfg.Now()
	rv.leave(end)
	rv.metrics.observe(x.status, end.Sub(x.start))
	x.log(err, end)
	if err != nil && x.sent && r.Context().Value(http.ServerContextKey) != nil {
		// How net/http is told to cut the connection, so that the client
		// sees that the response is not whole.
		panic(http.ErrAbortHandler)
	}
}

// route finds the revision of a request, or says what to answer.
func (g *Gateway) route(r *http.Request) (*revision, int, string) {
	if r.Method == http.MethodConnect {
		return nil, http.StatusMethodNotAllowed, "CONNECT is not supported"
	}
	host, ok := normalizeHost(r.Host)
	if !ok {
		return nil, http.StatusBadRequest, "the Host header is not a host name: " + clip(r.Host)
	}
	key, ok := g.routes.Load(host)
	if !ok {
		return nil, http.StatusNotFound, "no service has the host " + host + "; see the URLs of `skep list`, and send one of their hosts in the Host header"
	}
	rv := g.revision(key.(RevisionKey))
	if rv == nil {
		return nil, http.StatusServiceUnavailable, "the service of host " + host + " has no revision that is ready"
	}
	return rv, 0, ""
}

// serve answers the request, unless the client is gone or something was sent
// already when it failed. The error is for the log.
func (x *exchange) serve() error {
	x.upgrade = upgradeOf(x.r.Header)
	err := x.prepareBody()
	if err != nil {
		// It never came as far as the queue, but is counted like the others.
		x.rv.refuse(x.start)
	} else {
		err = x.attempts()
	}
	x.small = nil
	if err == nil {
		return nil
	}
	if !x.sent {
		x.status = statusOf(err)
		if x.status != 499 {
			x.decorate(x.w.Header())
			writeError(x.w, x.status, err.Error(), x.id, retryAfter(err))
		}
	}
	return err
}

// prepareBody reads a small body and decides how a larger one is sent.
func (x *exchange) prepareBody() error {
	r := x.r
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil
	}
	x.rc = http.NewResponseController(x.w)
	if r.ContentLength < 0 || r.ContentLength > smallBody || r.Header["Expect"] != nil || x.rv.config().Protocol == H2C {
		x.stream = true
		// Otherwise net/http swallows the rest of the body when the
		// response begins. Not every ResponseWriter can, nor needs to.
		_ = x.rc.EnableFullDuplex()
		return nil
	}
	_ = x.rc.SetReadDeadline(time.Now().Add(smallBodyTimeout))
	x.small = make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, x.small); err != nil {
		return x.bodyError(err)
	}
	_ = x.rc.SetReadDeadline(time.Time{})
	return nil
}

// attempts sends the request to one instance after another until one answers.
func (x *exchange) attempts() error {
	var tried []*instance
	var last error
	for {
		began := x.g.cfg.Now()
		if last == nil {
			began = x.start
		}
		t, err := x.rv.acquire(x.r.Context(), began, last != nil, tried, x.g.cfg.OnDemand)
		now := x.g.cfg.Now()
		x.timing.queue += now.Sub(began)
		if err != nil {
			var qt *queueTimeoutError
			switch {
			case x.gone():
				return errClientGone
			case last != nil && errors.As(err, &qt):
				return last
			}
			return err
		}
		x.cfg = t.cfg
		if t.cold != nil {
			x.cold = t.cold
		}
		if x.deadline.IsZero() {
			x.deadline = now.Add(x.cfg.Timeout)
		}
		retry, err := x.attempt(t.inst)
		if err == nil || !retry || x.sent || len(tried) >= x.g.cfg.MaxRetries || x.cut || x.gone() {
			return err
		}
		last = err
		tried = append(tried, t.inst)
	}
}

// attempt sends the request to one instance. It reports whether another may
// be tried after an error.
func (x *exchange) attempt(in *instance) (retry bool, err error) {
	defer func() { x.rv.release(in, err == nil) }()
	if x.cfg.Protocol == H2C && x.upgrade == "" {
		retry, err = x.viaH2C(in)
	} else {
		retry, err = x.viaHTTP1(in)
	}
	var up *upstreamError
	if retry && errors.As(err, &up) {
		// The request may be what broke the instance: it gets one more to
		// break, not all of them.
		x.broke++
		retry = x.broke < 2
	}
	var dial *dialError
	if errors.As(err, &dial) {
		x.rv.metrics.dialErrors.Inc()
		x.g.cfg.OnDialError(x.rv.key, in.id, dial.cause)
	}
	return retry, err
}

// gone reports whether the client has left.
func (x *exchange) gone() bool { return !x.cut && x.r.Context().Err() != nil }

// bodyError is the error for a body that did not come whole.
func (x *exchange) bodyError(err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case x.r.Context().Err() != nil:
		return errClientGone
	case errors.As(err, &timeout) && timeout.Timeout():
		return errBodyTimeout
	}
	return &badRequestError{"the request's body could not be read: " + err.Error()}
}

// idempotent reports whether the request may be sent twice, by RFC 9110 or the client's word.
func (x *exchange) idempotent() bool {
	switch x.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return x.r.Header["Idempotency-Key"] != nil || x.r.Header["X-Idempotency-Key"] != nil
}

// classify says whose fault an error of the connection to an instance is.
func (x *exchange) classify(doing string, err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case x.gone():
		return errClientGone
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return errTimeout
	}
	return &upstreamError{doing, err}
}

func (x *exchange) log(err error, end time.Time) {
	ctx := x.r.Context()
	if !x.g.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{
		slog.String("id", x.id), slog.String("revision", x.rv.key.String()),
		slog.String("method", x.r.Method), slog.String("host", x.r.Host), slog.String("path", x.r.URL.Path),
		slog.String("proto", x.r.Proto), slog.String("remote", x.r.RemoteAddr),
		slog.Int("status", x.status), slog.Int64("bytes", x.bytes), slog.String("start", x.startKind()),
		slog.Duration("took", end.Sub(x.start)), slog.Duration("queue", x.timing.queue),
		slog.Duration("dial", x.timing.dial), slog.Duration("upstream", x.timing.upstream),
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	x.g.log.LogAttrs(ctx, slog.LevelDebug, "request", attrs...)
}
