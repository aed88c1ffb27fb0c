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
	x.writeHead(resp, chunked, x.timing())
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

func (x *fastExchange) timing() string {
	var buf [96]byte
	b := appendTiming(buf[:0], "queue", 0)
	b = appendTiming(b, "dial", x.sentAt.Sub(x.start))
	b = appendTiming(b, "upstream", x.upstream)
	return string(b)
}

// writeHead writes the response's header; timing is "" for informational ones.
func (x *fastExchange) writeHead(resp *http.Response, chunked bool, timing string) {
	out := x.c.out
	_, _ = out.WriteString("HTTP/1.1 ")
	_, _ = out.Write(strconv.AppendInt(out.AvailableBuffer(), int64(resp.StatusCode), 10))
	_ = out.WriteByte(' ')
	_, _ = out.WriteString(http.StatusText(resp.StatusCode))
	_, _ = out.WriteString("\r\n")
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
	if timing != "" {
		_ = writeHeader(out, "X-Request-Id", x.id)
		_, _ = out.WriteString("X-Skep-Start: warm\r\n")
		_ = writeHeader(out, "Server-Timing", timing)
		if chunked {
			_, _ = out.WriteString("Transfer-Encoding: chunked\r\n")
			if len(resp.Trailer) > 0 {
				_ = writeHeader(out, "Trailer", trailerNames(resp.Trailer))
			}
		}
	}
	_, _ = out.WriteString("\r\n")
}
