package gateway

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	connBuffer = 4 << 10
	copyBuffer = 32 << 10
	// maxResponseHeader bounds the header of a response, informational
	// ones included: instances are not trusted.
	maxResponseHeader = 1 << 20
)

var errHeaderTooLarge = errors.New("the response's header is larger than 1 MiB")

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// upstreamConn is an HTTP/1.1 connection to an instance. One goroutine at a
// time uses it, except that abort may be called at any time.
type upstreamConn struct {
	net.Conn
	br *bufio.Reader // of Conn, through Read below
	bw *bufio.Writer

	// headerLeft is how much may be read before errHeaderTooLarge; <0 is
	// without limit.
	headerLeft int
	received   bool // something was read since it was set to false

	raw       syscall.RawConn // nil if Conn is not a socket
	peek      func(fd uintptr) bool
	peeked    int
	peekErr   error
	peekBuf   [1]byte
	idleSince time.Time
	// writeUntil is at most the write deadline: the fast lane sets it seldom.
	writeUntil time.Time
	reused     bool
}

func newUpstreamConn(c net.Conn) *upstreamConn {
	u := &upstreamConn{Conn: c}
	u.br = bufio.NewReaderSize(readLimiter{u}, connBuffer)
	u.bw = bufio.NewWriterSize(c, connBuffer)
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			u.raw = raw
			u.peek = func(fd uintptr) bool {
				u.peeked, _, u.peekErr = syscall.Recvfrom(int(fd), u.peekBuf[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
				return true
			}
		}
	}
	return u
}

// readLimiter keeps Read out of upstreamConn's own methods.
type readLimiter struct{ u *upstreamConn }

func (r readLimiter) Read(p []byte) (int, error) {
	left := r.u.headerLeft
	if left < 0 {
		n, err := r.u.Conn.Read(p)
		r.u.received = r.u.received || n > 0
		return n, err
	}
	if left == 0 {
		return 0, errHeaderTooLarge
	}
	n, err := r.u.Conn.Read(p[:min(len(p), left)])
	r.u.headerLeft -= n
	r.u.received = r.u.received || n > 0
	return n, err
}

// quiet reports whether an idle connection is still open and has nothing to
// read. Bytes that came without a request would be taken for the response to the next one.
func (u *upstreamConn) quiet() bool {
	if u.br.Buffered() != 0 {
		return false
	}
	if u.raw == nil {
		return true
	}
	if err := u.raw.Read(u.peek); err != nil {
		return false
	}
	return errors.Is(u.peekErr, syscall.EAGAIN)
}

// abort makes all reads and writes fail, now and later.
func (u *upstreamConn) abort() { _ = u.SetDeadline(aLongTimeAgo) }

var aLongTimeAgo = time.Unix(1, 0)

// copyFlush copies src to dst through a pooled buffer, calling flush after each read
// that did not end src. It returns what was copied, and whose error it was.
func copyFlush(dst io.Writer, src io.Reader, flush func() error) (n int64, readErr, writeErr error) {
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	buf := *bp
	for {
		nr, err := src.Read(buf)
		if nr > 0 {
			nw, werr := dst.Write(buf[:nr])
			n += int64(nw)
			if werr != nil {
				return n, nil, werr
			}
		}
		if err == io.EOF {
			return n, nil, nil
		}
		if err != nil {
			return n, err, nil
		}
		if err := flush(); err != nil {
			return n, nil, err
		}
	}
}
