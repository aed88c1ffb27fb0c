package gateway

import (
	"bufio"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// hopByHop reports whether a header is between two neighbours only and so is not
// forwarded. The name must be canonical.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	return false
}

// named holds the headers that a Connection header names, canonically. They
// are hop-by-hop too.
func named(h http.Header) []string {
	var names []string
	for _, v := range h["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			token = textproto.TrimString(token)
			switch {
			case token == "", strings.EqualFold(token, "close"), strings.EqualFold(token, "keep-alive"), strings.EqualFold(token, "upgrade"):
			default:
				names = append(names, http.CanonicalHeaderKey(token))
			}
		}
	}
	return names
}

// ours reports whether the gateway sets a request header itself.
func ours(name string) bool {
	switch name {
	case "Host", "Content-Length", "Expect", "X-Request-Id", "X-Forwarded-For",
		"X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded":
		return true
	}
	return false
}

// upgradeOf is the protocol a request wants to switch to, "" if none. The
// switch to h2c is never forwarded: it would open a tunnel past the gateway.
func upgradeOf(h http.Header) string {
	up := h["Upgrade"]
	if len(up) != 1 || !httpguts.HeaderValuesContainsToken(h["Connection"], "Upgrade") {
		return ""
	}
	if !httpguts.ValidHeaderFieldValue(up[0]) || len(up[0]) > 64 {
		return ""
	}
	for token := range strings.SplitSeq(up[0], ",") {
		if p := textproto.TrimString(token); strings.EqualFold(p, "h2c") || strings.EqualFold(p, "h2") {
			return ""
		}
	}
	return up[0]
}

// requestID is the request's own ID if it is sane, else a new one.
func requestID(h http.Header) string {
	if v := h["X-Request-Id"]; len(v) == 1 && saneID(v[0]) {
		return v[0]
	}
	var raw [16]byte
	a, b := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		raw[i], raw[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	var out [32]byte
	hex.Encode(out[:], raw[:])
	return string(out[:])
}

func saneID(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-_.:/+=@", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// forwarded is what a request says of the way it came.
type forwarded struct {
	xFor, xHost, xProto, forwarded string
}

// forwardedOf makes the headers. Those of the request count only if trusted.
func forwardedOf(r *http.Request, trust bool) forwarded {
	ip, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		ip = ""
	}
	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	f := forwarded{xFor: ip, xHost: r.Host, xProto: proto}
	node := ip
	switch {
	case node == "":
		node = "unknown"
	case strings.IndexByte(node, ':') >= 0:
		node = `"[` + node + `]"`
	}
	f.forwarded = "for=" + node + ";host=" + quoted(r.Host) + ";proto=" + proto
	if !trust {
		return f
	}
	if prior := r.Header["X-Forwarded-For"]; len(prior) > 0 {
		f.xFor = strings.Join(prior, ", ")
		if ip != "" {
			f.xFor += ", " + ip
		}
	}
	if v := r.Header.Get("X-Forwarded-Host"); v != "" {
		f.xHost = v
	}
	if v := r.Header.Get("X-Forwarded-Proto"); v != "" {
		f.xProto = v
	}
	if prior := r.Header["Forwarded"]; len(prior) > 0 {
		f.forwarded = strings.Join(prior, ", ") + ", " + f.forwarded
	}
	return f
}

// quoted is s as a token if it is one, else as a quoted string. s is a valid host.
func quoted(s string) string {
	if strings.ContainsAny(s, ":[]") {
		return `"` + s + `"`
	}
	return s
}

var errBadHeader = errors.New("a header with a line break")

// writeHeader writes a header line, refusing one that would end early. The
// server has checked requests before; this is the last door.
func writeHeader(w *bufio.Writer, name, value string) error {
	if strings.IndexByte(value, '\n') >= 0 || strings.IndexByte(value, '\r') >= 0 || strings.IndexByte(value, 0) >= 0 {
		return errBadHeader
	}
	_, _ = w.WriteString(name)
	_, _ = w.WriteString(": ")
	_, _ = w.WriteString(value)
	_, err := w.WriteString("\r\n")
	return err
}

// target is the request's target for an instance: the path and query as the
// client wrote them, except that bytes which may not be in a request line are escaped. HTTP/2
// allows them in, where a space would start another field here.
func target(r *http.Request) string {
	t := r.RequestURI
	if t == "" || t[0] != '/' { // absolute form, or a request made in code
		t = r.URL.RequestURI()
	}
	if t == "" || (t[0] != '/' && t != "*") {
		t = "/" + t
	}
	for i := 0; i < len(t); i++ {
		if t[i] <= ' ' || t[i] >= 0x7f {
			return escape(t)
		}
	}
	return t
}

func escape(t string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(t); i++ {
		if c := t[i]; c <= ' ' || c >= 0x7f {
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
