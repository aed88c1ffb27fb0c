package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// pump streams a request's body to an instance while the response is read.
// A nil pump is a request without such a body.
type pump struct {
	x       *exchange
	done    chan struct{} // closed when the pump's goroutine is gone
	stopped chan struct{} // closed to end it before it has begun
	goOn    chan struct{} // closed at 100 Continue
	once    sync.Once     // for goOn
	// read is set once the client's whole body has been read, before the
	// end of it is sent.
	read atomic.Bool

	// Valid after done.
	began bool
	err   error // nil if the whole body was sent
	// clientErr is err if it is the client's fault.
	clientErr error
}

func (x *exchange) pump(c *upstreamConn) *pump {
	p := &pump{x: x, done: make(chan struct{}), stopped: make(chan struct{}), goOn: make(chan struct{})}
	if !expectsContinue(x.r.Header) {
		p.proceed()
	}
	_ = x.rc.SetReadDeadline(x.deadline)
	go p.run(c)
	return p
}

// proceed lets the body flow. The server asks the client for it at the first read.
func (p *pump) proceed() {
	if p != nil {
		p.once.Do(func() { close(p.goOn) })
	}
}

// settle waits for the last steps of a pump that has nothing more to read: an
// instance that answers as soon as it has the body is faster than they are.
func (p *pump) settle() {
	if p == nil || !p.read.Load() {
		return
	}
	timer := time.NewTimer(settling)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	}
}

// settling bounds settle: the instance may answer and take in no more.
const settling = 100 * time.Millisecond

// bodyReader notes when a body of a known or unknown (< 0) length is read.
type bodyReader struct {
	io.Reader
	left int64
	read *atomic.Bool
}

func (b *bodyReader) Read(buf []byte) (int, error) {
	n, err := b.Reader.Read(buf)
	if b.left >= 0 {
		b.left -= int64(n)
	}
	if err == io.EOF || b.left == 0 {
		b.read.Store(true)
	}
	return n, err
}

func (p *pump) busy() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// end stops the pump if it still runs. It returns an error if the client did
// not send the whole body, and whether the instance got all of it.
func (p *pump) end(c *upstreamConn) (whole bool, clientErr error) {
	if p == nil {
		return true, nil
	}
	if !p.busy() {
		p.x.touched = p.x.touched || p.began
		return p.err == nil, p.clientErr
	}
	close(p.stopped)
	c.abort()
	select {
	case <-p.goOn:
		// It may be reading from the client. If net/http watches the
		// connection by now, this looks to it as if the client went away,
		// and all later requests of the connection would be cancelled.
		p.x.cut = p.x.r.Context().Err() == nil
		p.x.last = p.x.r.ProtoMajor == 1
		_ = p.x.rc.SetReadDeadline(aLongTimeAgo)
	default:
	}
	<-p.done
	p.x.touched = p.x.touched || p.began
	return false, nil
}

func (p *pump) run(c *upstreamConn) {
	defer close(p.done)
	timer := time.NewTimer(aBit)
	defer timer.Stop()
	select {
	case <-p.goOn:
	default:
		select {
		case <-p.goOn:
		case <-timer.C:
			p.proceed()
		case <-p.stopped:
			p.err = errors.New("the body was not asked for")
			return
		}
	}
	select {
	case <-p.stopped:
		p.err = errors.New("the body was not asked for")
		return
	default:
	}
	p.began = true
	readErr, writeErr := p.send(c)
	switch {
	case readErr != nil:
		// Never end a body which is not whole as if it were.
		c.abort()
		p.err, p.clientErr = readErr, p.x.bodyError(readErr)
	case writeErr != nil:
		p.err = writeErr
	default:
		// net/http watches the connection from here on; a deadline that
		// passed would look as if the client went away.
		_ = p.x.rc.SetReadDeadline(time.Time{})
	}
}

func (p *pump) send(c *upstreamConn) (readErr, writeErr error) {
	r := p.x.r
	if r.ContentLength >= 0 {
		body := &bodyReader{io.LimitReader(r.Body, r.ContentLength), r.ContentLength, &p.read}
		n, readErr, writeErr := copyFlush(c.Conn, body, func() error { return nil })
		if readErr == nil && writeErr == nil && n != r.ContentLength {
			readErr = io.ErrUnexpectedEOF
		}
		return readErr, writeErr
	}
	cw := chunkWriter{c.bw}
	body := &bodyReader{r.Body, -1, &p.read}
	if _, readErr, writeErr = copyFlush(cw, body, c.bw.Flush); readErr != nil || writeErr != nil {
		return readErr, writeErr
	}
	return nil, cw.end(r.Trailer)
}

// chunkWriter writes each Write as a chunk.
type chunkWriter struct{ w *bufio.Writer }

func (c chunkWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var size [18]byte
	_, _ = c.w.Write(append(strconv.AppendInt(size[:0], int64(len(p)), 16), "\r\n"...))
	n, _ := c.w.Write(p)
	_, err := c.w.WriteString("\r\n")
	return n, err
}

func (c chunkWriter) end(trailer http.Header) error {
	_, _ = c.w.WriteString("0\r\n")
	for name, values := range trailer {
		if hopByHop(name) || ours(name) || !validName(name) {
			continue
		}
		for _, v := range values {
			if err := writeHeader(c.w, name, v); err != nil {
				return fmt.Errorf("trailer %s: %w", clip(name), err)
			}
		}
	}
	_, _ = c.w.WriteString("\r\n")
	return c.w.Flush()
}
