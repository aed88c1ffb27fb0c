package gateway

import (
	"errors"
	"net/http"
)

// What happens to a connection of the fast lane after a request.
type fastResult int

const (
	fastNext fastResult = iota // the request was served
	fastGive                   // the request was not touched: the server takes it
	fastEnd                    // the connection is of no use any more
)

var errFastRetry = errors.New("nothing was sent that may not be sent again")

// exchange serves c.req.
func (c *fastConn) exchange() fastResult {
	q := &c.req
	rv := c.route()
	if rv == nil {
		return fastGive
	}
	if !c.g.enter() {
		c.g.leave()
		return fastGive
	}
	defer c.g.leave()
	start := c.g.cfg.Now()
	t, ok := rv.tryAcquire(start)
	if !ok {
		return fastGive
	}
	held := true
	defer func() {
		if held { // only after a panic
			rv.release(t.inst, false)
			rv.leave(start)
		}
	}()
	x := fastExchange{c: c, rv: rv, in: t.inst, start: start, deadline: start.Add(t.cfg.Timeout)}
	u := x.connect()
	if u == nil {
		held = false
		rv.untake(t.inst, start)
		return fastGive
	}
	if q.id != nil && saneID(string(q.id)) {
		x.id = string(q.id)
	} else {
		x.id = requestID(nil)
	}
	keep, err := x.over(u)
	if keep {
		t.inst.putIdle(u, c.g.cfg.Now())
	} else {
		_ = u.Close()
	}
	held = false
	if errors.Is(err, errFastRetry) && c.stay() {
		rv.untake(t.inst, start)
		return fastGive
	}
	end := c.g.cfg.Now()
	rv.release(t.inst, err == nil)
	rv.leave(end)
	rv.metrics.observe(x.status, end.Sub(start))
	x.log(err, end)
	if err != nil {
		return fastEnd
	}
	return fastNext
}

// stay ends the watch for a connection that goes to the server. It reports
// false if the client left.
func (c *fastConn) stay() bool {
	w := c.watch
	c.watch = nil
	return w == nil || w.end() && w.n == 0
}

// route is Gateway.route for plain requests; nil leaves them to it.
func (c *fastConn) route() *revision {
	if string(c.req.host) != c.rawHost { // compares without allocating
		raw := string(c.req.host)
		host, ok := normalizeHost(raw)
		if !ok {
			return nil
		}
		c.rawHost, c.host = raw, host
		f := forwardedOf(&http.Request{RemoteAddr: c.conn.RemoteAddr().String(), Host: raw}, false)
		c.forwarded = "X-Forwarded-For: " + f.xFor + "\r\nX-Forwarded-Host: " + f.xHost +
			"\r\nX-Forwarded-Proto: " + f.xProto + "\r\nForwarded: " + f.forwarded + "\r\n"
	}
	key, ok := c.g.routes.Load(c.host)
	if !ok {
		return nil
	}
	return c.g.revision(key.(RevisionKey))
}
