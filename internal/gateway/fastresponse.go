package gateway

import (
	"bytes"
	"net/http"
	"strconv"
)

// fastResponse is a response of the plainest kind. Its slices point into the
// connection's buffer.
type fastResponse struct {
	status int
	fields [maxFastHeaders]fastField
	n      int // of fields: those to forward
	body   []byte
}

// parse takes b if it is exactly one response to a request that was not HEAD,
// whole, with a Content-Length and no other header that concerns the
// connection. As with requests, everything else is left to net/http's parser,
// which has to understand what this takes in the same way.
func (p *fastResponse) parse(b []byte) bool {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return false
	}
	line, head, _ := bytes.Cut(b[:end+2], []byte("\r\n"))
	if !p.statusLine(line) {
		return false
	}
	p.n = 0
	length := -1
	for len(head) > 0 {
		f, rest, ok := nextField(head)
		if !ok {
			return false
		}
		head = rest
		switch kindOf(f.name) {
		case fieldOdd:
			return false
		case fieldLength:
			if length >= 0 {
				return false
			}
			if length, ok = fastLength(f.value); !ok {
				return false
			}
			continue
		case fieldConnection:
			if !equalFold(f.value, "keep-alive") {
				return false
			}
			continue
		case fieldID:
			continue
		}
		if equalFold(f.name, "x-skep-start") {
			continue
		}
		if p.n == maxFastHeaders {
			return false
		}
		p.fields[p.n] = f
		p.n++
	}
	p.body = b[end+4:]
	return length == len(p.body)
}

// statusLine takes the final statuses that have a body.
func (p *fastResponse) statusLine(line []byte) bool {
	const begin = "HTTP/1.1 "
	if len(line) < len(begin)+4 || string(line[:len(begin)]) != begin || line[len(begin)+3] != ' ' || !fastValue(line) {
		return false
	}
	p.status = 0
	for _, c := range line[len(begin) : len(begin)+3] {
		if c < '0' || c > '9' {
			return false
		}
		p.status = p.status*10 + int(c-'0')
	}
	return p.status >= 200 && p.status < 600 && p.status != http.StatusNoContent && p.status != http.StatusNotModified
}

// quick passes on the response that lies in u's buffer, if it is plain.
func (x *fastExchange) quick(u *upstreamConn) (done bool, err error) {
	if x.c.req.method == http.MethodHead {
		return false, nil
	}
	n := u.br.Buffered()
	b, _ := u.br.Peek(n) // what is buffered is always there
	p := &x.c.resp
	if !p.parse(b) {
		return false, nil
	}
	x.upstream = x.c.g.cfg.Now().Sub(x.sentAt)
	x.status, x.begun, x.bytes = p.status, true, int64(len(p.body))
	out := x.c.out
	x.writeStatus(p.status)
	for _, f := range p.fields[:p.n] {
		_, _ = out.Write(f.name)
		_, _ = out.WriteString(": ")
		_, _ = out.Write(f.value)
		_, _ = out.WriteString("\r\n")
	}
	_, _ = out.WriteString("Content-Length: ")
	_, _ = out.Write(strconv.AppendInt(out.AvailableBuffer(), x.bytes, 10))
	_, _ = out.WriteString("\r\n")
	x.writeOurs()
	_, _ = out.WriteString("\r\n")
	_, _ = out.Write(p.body)
	_, _ = u.br.Discard(n)
	if out.Flush() != nil {
		return true, errClientGone
	}
	return true, nil
}
