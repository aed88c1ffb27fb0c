package pager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ReceiveHandshake reads one handshake, as Firecracker sends it, until ctx
// ends. The connection stays the caller's: it should stay open as long as the
// process is served, as its end tells the other side that nobody serves it.
//
// On error the process at the other end is dead, as its memory is not going to
// be served, unless the error wraps ErrNotKilled or the process is this one; it
// is killed before what it handed over is closed.
func ReceiveHandshake(ctx context.Context, conn *net.UnixConn) (*Handshake, error) {
	process, self, err := peerProcess(conn)
	if err != nil {
		return nil, err
	}
	data, fds, err := receive(ctx, conn)
	h := &Handshake{Process: process}
	if err == nil {
		h.Regions, err = ParseRegions(data)
	}
	if err == nil && len(fds) != 1 {
		err = fmt.Errorf("%d descriptors, must be the userfaultfd alone", len(fds))
	}
	if err == nil {
		h.UFFD, err = AdoptUFFD(fds[0])
	}
	if err != nil {
		return nil, fmt.Errorf("userfaultfd handshake: %w", refuse(process, self, fds, err))
	}
	return h, nil
}

// refuse kills a process, then closes what it has sent, and returns cause with
// what went wrong.
func refuse(process int, self bool, fds []int, cause error) error {
	defer unix.Close(process) //nolint:errcheck // a pidfd
	if !self {
		err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0)
		if err == nil || errors.Is(err, unix.ESRCH) {
			err = waitExit(process, killTimeout)
		}
		if err != nil {
			return errors.Join(cause, fmt.Errorf("%w: %w", ErrNotKilled, err))
		}
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return cause
}

// receive collects the JSON, which may come in parts, and all descriptors.
func receive(ctx context.Context, conn *net.UnixConn) (data []byte, fds []int, err error) {
	defer bindDeadline(ctx, conn)()
	part := make([]byte, 16<<10)
	oob := make([]byte, unix.CmsgSpace(4*maxDescriptors))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(part, oob)
		if oobn > 0 {
			more, perr := parseDescriptors(oob[:oobn])
			fds = append(fds, more...)
			if perr != nil {
				return nil, fds, perr
			}
		}
		if err != nil {
			return nil, fds, errors.Join(fmt.Errorf("after %d bytes: %w", len(data), err), ctx.Err())
		}
		if flags&unix.MSG_CTRUNC != 0 || len(fds) > maxDescriptors {
			return nil, fds, errors.New("too many descriptors")
		}
		if n == 0 {
			return nil, fds, fmt.Errorf("connection ended after %d bytes", len(data))
		}
		if data = append(data, part[:n]...); len(data) > maxHandshakeSize {
			return nil, fds, fmt.Errorf("more than %d bytes", maxHandshakeSize)
		}
		// Regions hold no arrays and no strings: the first "]" is the end.
		if bytes.IndexByte(part[:n], ']') >= 0 {
			return data, fds, nil
		}
	}
}

func parseDescriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var fds []int
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		more, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, fmt.Errorf("control message: %w", err)
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

// peerProcess is a pidfd of the process at the other end, and whether it is
// this one.
func peerProcess(conn *net.UnixConn) (pidfd int, self bool, err error) {
	fail := func(err error) (int, bool, error) {
		return -1, false, fmt.Errorf("userfaultfd handshake: peer process: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fail(err)
	}
	var cred *unix.Ucred
	var cerr, perr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		pidfd, perr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	}); err != nil {
		return fail(err)
	}
	if cerr != nil {
		if perr == nil {
			_ = unix.Close(pidfd)
		}
		return fail(cerr)
	}
	if perr == unix.ENOPROTOOPT { // before Linux 6.5: by a number that could be another's by now
		pidfd, perr = unix.PidfdOpen(int(cred.Pid), 0)
	}
	if perr != nil {
		return fail(fmt.Errorf("open %d: %w", cred.Pid, perr))
	}
	return pidfd, int(cred.Pid) == os.Getpid(), nil
}
