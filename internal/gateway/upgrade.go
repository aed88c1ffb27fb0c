package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"bufio"
)

// tunnel joins the client to the instance after the instance agreed to switch
// protocols, until both have ended or the request's deadline.
func (x *exchange) tunnel(c *upstreamConn, resp *http.Response) error {
	if up := resp.Header.Get("Upgrade"); !strings.EqualFold(up, x.upgrade) {
		return &upstreamError{"switching protocols", fmt.Errorf("it switched to %q instead of %q", clip(up), clip(x.upgrade))}
	}
	head, err := x.switchHead(resp)
	if err != nil {
		return &upstreamError{"switching protocols", err}
	}
	client, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return &upstreamError{"switching protocols", fmt.Errorf("the client's connection cannot be taken over: %w", err)}
	}
	defer client.Close()
	x.sent = true
	x.status = http.StatusSwitchingProtocols
	_ = client.SetDeadline(x.deadline)
	_ = c.SetDeadline(x.deadline)
	stop := context.AfterFunc(x.g.aborted, func() {
		_ = client.SetDeadline(aLongTimeAgo)
		c.abort()
	})
	defer stop()
	if _, err := client.Write(head); err != nil {
		return nil // the client is gone, which ends a tunnel like any other way
	}
	down := make(chan int64, 1)
	go func() { down <- join(client, c.br) }()
	join(c.Conn, buffered.Reader)
	x.bytes = <-down
	return nil
}

// join copies until from ends, and then ends to's side of the connection.
func join(to net.Conn, from io.Reader) int64 {
	n, readErr, writeErr := copyFlush(to, from, func() error { return nil })
	if readErr != nil || writeErr != nil {
		_ = to.SetDeadline(aLongTimeAgo) // wakes the other direction
		return n
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	} else {
		_ = to.SetDeadline(aLongTimeAgo)
	}
	return n
}

// switchHead is the 101 response for the client.
func (x *exchange) switchHead(resp *http.Response) ([]byte, error) {
	var buf bytes.Buffer
	w := bufio.NewWriter(&buf)
	_, _ = w.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	h := make(http.Header, len(resp.Header)+4)
	drop := named(resp.Header)
	for name, values := range resp.Header {
		if !hopByHop(name) && !contains(drop, name) && name != "Content-Length" {
			h[name] = values
		}
	}
	x.decorate(h)
	h["Connection"] = []string{"Upgrade"}
	h["Upgrade"] = []string{resp.Header.Get("Upgrade")}
	for name, values := range h {
		for _, v := range values {
			if err := writeHeader(w, name, v); err != nil {
				return nil, err
			}
		}
	}
	_, _ = w.WriteString("\r\n")
	err := w.Flush()
	return buf.Bytes(), err
}
