package gateway

import (
	"bytes"
	"net/http"

	"golang.org/x/net/http/httpguts"
)

// maxFastHeaders is how many header lines the fast lane takes.
const maxFastHeaders = 64

// fastRequest is a request of the plainest kind. Its slices point into the
// connection's buffer.
type fastRequest struct {
	method  string
	target  []byte
	host    []byte
	id      []byte // X-Request-Id, nil if none
	fields  [maxFastHeaders]fastField
	n       int // of fields: those to forward, without Host and Content-Length
	body    []byte
	hasBody bool // there was a Content-Length
	size    int  // of the whole request
}

type fastField struct{ name, value []byte }

// parse takes exactly one request from the beginning of b. It reports false
// for everything that is incomplete, unusual, ambiguous or wrong: that is left to net/http,
// so being too strict here costs time only, and being lax is never needed.
func (q *fastRequest) parse(b []byte) bool {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return false
	}
	head := b[:end+2]
	line, head, _ := bytes.Cut(head, []byte("\r\n"))
	if !q.requestLine(line) {
		return false
	}
	q.n, q.host, q.id, q.hasBody, q.body = 0, nil, nil, false, nil
	length := 0
	for len(head) > 0 {
		f, rest, ok := nextField(head)
		if !ok {
			return false
		}
		head = rest
		switch kindOf(f.name) {
		case fieldOdd:
			return false
		case fieldHost:
			if q.host != nil || len(f.value) == 0 {
				return false
			}
			q.host = f.value
		case fieldLength:
			if q.hasBody {
				return false
			}
			if length, ok = fastLength(f.value); !ok {
				return false
			}
			q.hasBody = true
		case fieldConnection:
			if !equalFold(f.value, "keep-alive") {
				return false
			}
		case fieldID:
			if q.id != nil || len(f.value) == 0 {
				return false
			}
			q.id = f.value
		case fieldDropped:
		case fieldPlain:
			if q.n == maxFastHeaders {
				return false
			}
			q.fields[q.n] = f
			q.n++
		}
	}
	if q.host == nil || end+4+length > len(b) {
		return false
	}
	q.body = b[end+4 : end+4+length]
	q.size = end + 4 + length
	return true
}

// nextField takes a header line from head, which ends with one.
func nextField(head []byte) (f fastField, rest []byte, ok bool) {
	i := bytes.IndexByte(head, '\r')
	if i < 0 || i+1 >= len(head) || head[i+1] != '\n' {
		return f, nil, false
	}
	line, rest := head[:i], head[i+2:]
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 || !fastName(line[:colon]) {
		return f, nil, false
	}
	f = fastField{line[:colon], bytes.Trim(line[colon+1:], " \t")}
	return f, rest, fastValue(f.value)
}

func (q *fastRequest) requestLine(line []byte) bool {
	method, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return false
	}
	target, proto, ok := bytes.Cut(rest, []byte(" "))
	if !ok || string(proto) != "HTTP/1.1" || len(target) == 0 || target[0] != '/' {
		return false
	}
	for i, c := range target {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
		if c == '%' && (i+2 >= len(target) || !isHex(target[i+1]) || !isHex(target[i+2])) {
			return false
		}
	}
	q.target = target
	switch string(method) { // constants: no allocation
	case http.MethodGet:
		q.method = http.MethodGet
	case http.MethodHead:
		q.method = http.MethodHead
	case http.MethodPost:
		q.method = http.MethodPost
	case http.MethodPut:
		q.method = http.MethodPut
	case http.MethodPatch:
		q.method = http.MethodPatch
	case http.MethodDelete:
		q.method = http.MethodDelete
	default:
		return false
	}
	return true
}

// What the fast lane does with a header field.
const (
	fieldPlain   = iota // forwards it
	fieldDropped        // replaces it
	fieldOdd            // leaves the request to net/http
	fieldHost
	fieldLength
	fieldConnection
	fieldID
)

func kindOf(name []byte) int {
	switch len(name) {
	case 2:
		if equalFold(name, "te") {
			return fieldOdd
		}
	case 4:
		if equalFold(name, "host") {
			return fieldHost
		}
	case 6:
		if equalFold(name, "expect") {
			return fieldOdd
		}
	case 7:
		if equalFold(name, "upgrade") || equalFold(name, "trailer") {
			return fieldOdd
		}
	case 9:
		if equalFold(name, "forwarded") {
			return fieldDropped
		}
	case 10:
		if equalFold(name, "connection") {
			return fieldConnection
		}
		if equalFold(name, "keep-alive") {
			return fieldOdd
		}
	case 12:
		if equalFold(name, "x-request-id") {
			return fieldID
		}
	case 14:
		if equalFold(name, "content-length") {
			return fieldLength
		}
		if equalFold(name, "http2-settings") {
			return fieldOdd
		}
	case 15:
		if equalFold(name, "x-forwarded-for") {
			return fieldDropped
		}
	case 16:
		if equalFold(name, "x-forwarded-host") {
			return fieldDropped
		}
	case 17:
		if equalFold(name, "transfer-encoding") {
			return fieldOdd
		}
		if equalFold(name, "x-forwarded-proto") {
			return fieldDropped
		}
	}
	if len(name) > 6 && equalFold(name[:6], "proxy-") {
		return fieldOdd
	}
	return fieldPlain
}

// equalFold compares with a lower-case ASCII word.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func fastName(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 || !httpguts.IsTokenRune(rune(c)) {
			return false
		}
	}
	return true
}

func fastValue(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// fastLength is a Content-Length of at most five digits.
func fastLength(b []byte) (int, bool) {
	if len(b) == 0 || len(b) > 5 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}
