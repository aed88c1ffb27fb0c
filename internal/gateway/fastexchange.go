package gateway

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// fastExchange is one request and its response.
type fastExchange struct {
	c               *fastConn
	rv              *revision
	in              *instance
	id              string
	start, deadline time.Time
	sentAt          time.Time
	upstream        time.Duration
	status          int
	bytes           int64
	begun           bool // something was sent to the client
	patient         bool // the instance's connection has the request's deadline
}

// over sends the request over u. It reports whether u can be used again.
func (x *fastExchange) over(u *upstreamConn) (keep bool, err error) {
	q := &x.c.req
	x.sentAt = x.c.g.cfg.Now()
	if x.deadline.After(u.writeUntil) {
		u.writeUntil = x.deadline.Add(10 * deadlineSlack)
		_ = u.SetWriteDeadline(u.writeUntil)
	}
	_ = u.SetReadDeadline(x.sentAt.Add(min(patience, x.deadline.Sub(x.sentAt))))
	u.received = false
	again := q.method != http.MethodPost && q.method != http.MethodPatch
	if err := x.send(u); err != nil {
		return false, x.failed(u, again, err)
	}
	u.headerLeft = maxResponseHeader
	if _, err = u.br.Peek(1); err != nil && isTimeout(err) {
		x.slow(u)
		_, err = u.br.Peek(1)
	}
	if err != nil {
		return false, x.failed(u, again, err)
	}
	if done, err := x.quick(u); done {
		return x.reusable(err == nil), err
	}
	resp, err := x.head(u) //nolint:bodyclose // u is its body, and has an end of its own
	u.headerLeft = -1
	if err != nil {
		return false, x.failed(u, false, err)
	}
	x.upstream = x.c.g.cfg.Now().Sub(x.sentAt)
	err = x.respond(u, resp)
	return x.reusable(err == nil && !resp.Close && u.br.Buffered() == 0), err
}

// reusable reports whether a connection that was served well can be kept.
func (x *fastExchange) reusable(well bool) bool {
	if x.c.watch != nil { // it may abort the connection until it has ended
		return x.c.watch.end() && well
	}
	return well
}

func isTimeout(err error) bool {
	var te interface{ Timeout() bool }
	return errors.As(err, &te) && te.Timeout()
}

// unhurried gives u all the request's time.
func (x *fastExchange) unhurried(u *upstreamConn) {
	if !x.patient {
		x.patient = true
		_ = u.SetReadDeadline(x.deadline)
	}
}

// slow goes on with an eye on the client.
func (x *fastExchange) slow(u *upstreamConn) {
	if x.c.watch != nil {
		return
	}
	x.unhurried(u) // before the watch, which may abort u
	// With time left to say that the request took too long.
	_ = x.c.conn.SetWriteDeadline(x.deadline.Add(10 * deadlineSlack))
	x.c.watch = watchFor(x.c.conn, u.abort)
}

// send writes the request.
func (x *fastExchange) send(u *upstreamConn) error {
	c, q, w := x.c, &x.c.req, u.bw
	w.Reset(u.Conn) // forgets an earlier request's error
	_, _ = w.WriteString(q.method)
	_ = w.WriteByte(' ')
	_, _ = w.Write(q.target)
	_, _ = w.WriteString(" HTTP/1.1\r\nHost: ")
	_, _ = w.WriteString(c.rawHost)
	_, _ = w.WriteString("\r\n")
	for i := range q.n {
		_, _ = w.Write(q.fields[i].name)
		_, _ = w.WriteString(": ")
		_, _ = w.Write(q.fields[i].value)
		_, _ = w.WriteString("\r\n")
	}
	_, _ = w.WriteString("X-Request-Id: ")
	_, _ = w.WriteString(x.id)
	_, _ = w.WriteString("\r\n")
	_, _ = w.WriteString(c.forwarded)
	if q.hasBody || q.method == http.MethodPost || q.method == http.MethodPut || q.method == http.MethodPatch {
		_, _ = w.WriteString("Content-Length: ")
		_, _ = w.Write(strconv.AppendInt(w.AvailableBuffer(), int64(len(q.body)), 10))
		_, _ = w.WriteString("\r\n")
	}
	_, _ = w.WriteString("\r\n")
	_, _ = w.Write(q.body)
	return w.Flush()
}

// head reads the final response's header and passes informational ones on.
func (x *fastExchange) head(u *upstreamConn) (*http.Response, error) {
	x.c.http.Method = x.c.req.method
	if b, _ := u.br.Peek(u.br.Buffered()); !bytes.Contains(b, []byte("\r\n\r\n")) {
		x.unhurried(u)
	}
	for range maxInformational {
		resp, err := http.ReadResponse(u.br, &x.c.http)
		if err != nil {
			return nil, err
		}
		switch code := resp.StatusCode; {
		case code == http.StatusSwitchingProtocols:
			return nil, errors.New("it switched protocols without being asked")
		case code == http.StatusContinue: // nobody waits for it
		case code < 200:
			x.writeHead(resp, false, false)
			if err := x.c.out.Flush(); err != nil {
				return nil, err
			}
		default:
			return resp, nil
		}
	}
	return nil, errors.New("it sent too many informational responses")
}

// failed decides what becomes of a request for which no response came.
func (x *fastExchange) failed(u *upstreamConn, again bool, err error) error {
	if again && !u.received && !x.begun && !isTimeout(err) {
		return errFastRetry
	}
	x.status = http.StatusBadGateway
	cause := error(&upstreamError{"waiting for the response", err})
	if isTimeout(err) {
		x.status, cause = http.StatusGatewayTimeout, errTimeout
		if w := x.c.watch; w != nil && w.left() {
			x.status = 499
			return errClientGone
		}
	}
	if x.begun {
		return cause
	}
	rw := fastErrorWriter{h: http.Header{"Connection": {"close"}, "X-Skep-Start": {"warm"}}, x: x}
	writeError(rw, x.status, cause.Error(), x.id, 0)
	_ = x.c.out.Flush() // the connection ends in any case
	return cause
}

// fastErrorWriter is a ResponseWriter for short errors.
type fastErrorWriter struct {
	h http.Header
	x *fastExchange
}

func (w fastErrorWriter) Header() http.Header { return w.h }

func (w fastErrorWriter) WriteHeader(status int) {
	out := w.x.c.out
	_, _ = out.WriteString("HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status) + "\r\n")
	_ = w.h.Write(out)
	_, _ = out.WriteString("\r\n")
}

func (w fastErrorWriter) Write(p []byte) (int, error) {
	if w.x.c.req.method == http.MethodHead {
		return len(p), nil
	}
	return w.x.c.out.Write(p)
}

// connect returns a connection to the instance. A failure to dial is left to
// the server, which tries other instances.
func (x *fastExchange) connect() *upstreamConn {
	if u := x.in.getIdle(); u != nil {
		return u
	}
	nc, err := x.in.dial(x.c.g.aborted)
	if err != nil {
		return nil
	}
	return newUpstreamConn(nc)
}

func (x *fastExchange) log(err error, end time.Time) {
	g, q := x.c.g, &x.c.req
	if !g.log.Enabled(g.aborted, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{
		slog.String("id", x.id), slog.String("revision", x.rv.key.String()),
		slog.String("method", q.method), slog.String("host", x.c.rawHost), slog.String("target", string(q.target)),
		slog.String("proto", "HTTP/1.1"), slog.String("remote", x.c.conn.RemoteAddr().String()),
		slog.Int("status", x.status), slog.Int64("bytes", x.bytes), slog.String("start", "warm"),
		slog.Duration("took", end.Sub(x.start)), slog.Duration("upstream", x.upstream),
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	g.log.LogAttrs(g.aborted, slog.LevelDebug, "request", attrs...)
}
