package gateway

import (
	"io"
	"net/http"
	"strconv"
)

// respond sends the response.
func (x *fastExchange) respond(u *upstreamConn, resp *http.Response) error {
	out := x.c.out
	x.status = resp.StatusCode
	x.begun = true
	bodyless := x.c.req.method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified
	chunked := !bodyless && resp.ContentLength < 0
	x.writeHead(resp, chunked, true)
	if bodyless || resp.ContentLength == 0 {
		return out.Flush()
	}
	if chunked || resp.ContentLength > int64(u.br.Buffered()) {
		x.unhurried(u)
	}
	if u.br.Buffered() == 0 { // the body may be long in coming
		if chunked {
			x.slow(u)
		}
		if err := out.Flush(); err != nil {
			return errClientGone
		}
	}
	var dst io.Writer = out
	if chunked {
		dst = chunkWriter{out}
	}
	n, readErr, writeErr := copyFlush(dst, resp.Body, func() error {
		x.slow(u)
		return out.Flush()
	})
	x.bytes = n
	switch {
	case writeErr != nil:
		return errClientGone
	case readErr != nil:
		return &upstreamError{"reading the response's body", readErr}
	}
	if chunked {
		writeErr = chunkWriter{out}.end(resp.Trailer)
	} else {
		writeErr = out.Flush()
	}
	if writeErr != nil {
		return errClientGone
	}
	return nil
}

// writeOurs writes the gateway's own headers.
func (x *fastExchange) writeOurs() {
	out := x.c.out
	_, _ = out.WriteString("X-Request-Id: ")
	_, _ = out.WriteString(x.id)
	_, _ = out.WriteString("\r\nX-Skep-Start: warm\r\nServer-Timing: ")
	b := appendTiming(out.AvailableBuffer(), "queue", 0)
	b = appendTiming(b, "dial", x.sentAt.Sub(x.start))
	b = appendTiming(b, "upstream", x.upstream)
	_, _ = out.Write(b)
	_, _ = out.WriteString("\r\n")
}

func (x *fastExchange) writeStatus(code int) {
	out := x.c.out
	_, _ = out.WriteString("HTTP/1.1 ")
	_, _ = out.Write(strconv.AppendInt(out.AvailableBuffer(), int64(code), 10))
	_ = out.WriteByte(' ')
	_, _ = out.WriteString(http.StatusText(code))
	_, _ = out.WriteString("\r\n")
}

// writeHead writes the header of a final or an informational response.
func (x *fastExchange) writeHead(resp *http.Response, chunked, final bool) {
	out := x.c.out
	x.writeStatus(resp.StatusCode)
	drop := named(resp.Header)
	for name, values := range resp.Header {
		if hopByHop(name) || contains(drop, name) || !validName(name) {
			continue
		}
		switch name {
		case "X-Request-Id", "X-Skep-Start":
			continue
		case "Content-Length":
			if chunked {
				continue
			}
		}
		for _, v := range values {
			_ = writeHeader(out, name, v) // ReadResponse let no line break in
		}
	}
	if final {
		x.writeOurs()
		if chunked {
			_, _ = out.WriteString("Transfer-Encoding: chunked\r\n")
			if len(resp.Trailer) > 0 {
				_ = writeHeader(out, "Trailer", trailerNames(resp.Trailer))
			}
		}
	}
	_, _ = out.WriteString("\r\n")
}
