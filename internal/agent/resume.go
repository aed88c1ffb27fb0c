package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A restored guest is told of it by a datagram, which a thread of the agent
// waits for in the kernel. To take in a connection and a call costs many times
// as much, where the processor is emulated and has to translate all code that
// it comes across for the first time; and the function's first request waits
// for that. The datagram holds the token that the snapshot knows, and a
// Restored. The answer is answerOK, answerDenied, or answerFailed and a text.

// answerFailed is for datagrams only.
const answerFailed = 'f'

const (
	// maxReason bounds the text after answerFailed.
	maxReason = 1024
	// maxDatagram is that of the question.
	maxDatagram = tokenSize + restoredSize + maxHostname
	// resend is when a datagram is taken for lost, and from when on its time
	// counts as old. A guest that is only slow becomes somebody else once; its
	// clock it sets again.
	resend = 500 * time.Millisecond
	// corrections is how often the time is sent again to a guest that has
	// answered, but late, before its clock is as right as it gets.
	corrections = 20
	// okSize is the size of answerOK with the time.
	okSize = 1 + 8
)

// Resume gives a guest that has just been restored its new identity: t is the
// token that the snapshot knows, and r.Token the one from now on. dial makes a
// UDP socket connected to Port.
func Resume(ctx context.Context, dial func(context.Context) (net.Conn, error), t Token, r *Restored) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return fmt.Errorf("agent: restored: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	told := false
	for again := 0; ; again++ {
		now := time.Now()
		body, err := r.encode(now)
		if err == nil {
			_, err = conn.Write(append(t[:len(t):len(t)], body...))
		}
		if err == nil {
			err = conn.SetReadDeadline(now.Add(resend))
		}
		for err == nil {
			var of time.Time
			if of, err = readAnswer(conn); err != nil {
				break
			}
			if !told {
				told, again = true, 0
			}
			if of.Equal(time.Unix(0, now.UnixNano())) {
				return nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("agent: restored: %w", ctx.Err())
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("agent: restored: %w", err)
		case told && again >= corrections:
			return nil // as good as it gets
		}
	}
}

// readAnswer reads one answer; of is the time in the datagram that it is to.
func readAnswer(conn net.Conn) (of time.Time, err error) {
	var b [1 + maxReason]byte
	n, err := conn.Read(b[:])
	switch {
	case err != nil:
		return of, err
	case n == okSize && b[0] == answerOK:
		return time.Unix(0, int64(binary.BigEndian.Uint64(b[1:]))), nil //nolint:gosec // any will do
	case n > 0 && b[0] == answerFailed:
		return of, fmt.Errorf("%q", b[1:n])
	}
	return of, errDenied
}

// restoredListener waits for datagrams, on a thread of its own.
type restoredListener struct {
	fd     int
	gate   *gate
	done   chan struct{}
	told   bool // it is somebody else: what comes now is the time
	buf    [maxDatagram + 1]byte
	answer [1 + maxReason]byte
}

// listenRestored listens on the UDP port of the same number.
func listenRestored(a net.Addr, g *gate) (*restoredListener, error) {
	t, ok := a.(*net.TCPAddr)
	if !ok || t.IP.To4() == nil {
		return nil, fmt.Errorf("listen for datagrams: %v is not an IPv4 address", a)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("listen for datagrams: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: t.Port, Addr: [4]byte(t.IP.To4())}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen for datagrams: %w", err)
	}
	d := &restoredListener{fd: fd, gate: g, done: make(chan struct{})}
	go d.run()
	return d, nil
}

// close ends the listener.
func (d *restoredListener) close() {
	_ = unix.Shutdown(d.fd, unix.SHUT_RDWR) // an error, but it wakes the reader
	<-d.done
	_ = unix.Close(d.fd)
}

func (d *restoredListener) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(d.done)
	host := [4]byte(d.gate.host.To4())
	for {
		n, from, err := unix.Recvfrom(d.fd, d.buf[:], 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil, n == 0 && from == nil:
			return
		}
		if d.told {
			n, from = d.newest(n, from)
		}
		if a, ok := from.(*unix.SockaddrInet4); ok && a.Addr == host {
			_ = unix.Sendto(d.fd, d.handle(d.buf[:n]), 0, from)
		}
	}
}

// newest leaves the last of the datagrams that are there in buf. A guest so slow
// that they have piled up would set its clock to times long past, one by one.
func (d *restoredListener) newest(n int, from unix.Sockaddr) (int, unix.Sockaddr) {
	for {
		next, sender, err := unix.Recvfrom(d.fd, d.buf[:], unix.MSG_DONTWAIT)
		if err != nil || sender == nil {
			return n, from // the buffer is as it was
		}
		n, from = next, sender
	}
}

// handle does what a datagram says, and returns the answer.
func (d *restoredListener) handle(b []byte) []byte {
	if len(b) < tokenSize || len(b) > maxDatagram {
		return append(d.answer[:0], answerDenied)
	}
	r, err := parseRestored(b[tokenSize:])
	if err == nil {
		err = d.gate.restored(Token(b[:tokenSize]), r)
	}
	switch {
	case err == nil:
		d.told = true
		return binary.BigEndian.AppendUint64(append(d.answer[:0], answerOK), uint64(r.Wall.UnixNano())) //nolint:gosec // as it came
	case errors.Is(err, errDenied):
		return append(d.answer[:0], answerDenied)
	}
	text := err.Error()
	return append(append(d.answer[:0], answerFailed), text[:min(len(text), maxReason)]...)
}
