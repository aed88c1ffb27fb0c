package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects to address from within the network namespace at path.
// network is "tcp", "tcp4", "tcp6", "udp", "udp4" or "udp6"; address is a
// literal IP address and port ("172.16.0.2:8080"): no name is ever resolved.
//
// Only the making of the socket happens in the namespace. The thread is home
// again before the connection is being made, which therefore may take long,
// costs no thread, and ends with ctx.
//
// Errors of the connection itself are *net.OpError as from package net.
func Dial(ctx context.Context, path, network, address string) (net.Conn, error) {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial in network namespace: address must be a literal IP:port: %w", err)
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	kind, remote, err := parseNetwork(network, addr)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, opError(network, remote, err)
	}
	family, sa, err := sockaddr(addr)
	if err != nil {
		return nil, err
	}
	fd := -1
	err = Do(path, func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("dial %s in network namespace: %w", address, err)
	}
	// f owns fd and waits in the runtime's poller, since fd is non-blocking.
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // FileConn duplicates
	if err := connect(ctx, f, sa); err != nil {
		return nil, opError(network, remote, err)
	}
	conn, err := net.FileConn(f) // also sets no-delay and keep-alive, as a Dialer does
	if err != nil {
		return nil, opError(network, remote, err)
	}
	return conn, nil
}

// connect connects the non-blocking socket f to sa, or returns when ctx ends.
func connect(ctx context.Context, f *os.File, sa unix.Sockaddr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := f.SetWriteDeadline(deadline); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() {
		_ = f.SetWriteDeadline(time.Unix(1, 0)) // wakes the waiting Write
	})
	defer stop()

	started := false
	var result error
	err = raw.Write(func(fd uintptr) (done bool) {
		if !started {
			started = true
			result = ignoringEINTR(func() error { return unix.Connect(int(fd), sa) })
			switch {
			case errors.Is(result, unix.EINPROGRESS), errors.Is(result, unix.EALREADY):
				return false
			case errors.Is(result, unix.EISCONN):
				result = nil
			default:
				result = os.NewSyscallError("connect", result) // nil for nil
			}
			return true
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			result = os.NewSyscallError("getsockopt", err)
			return true
		}
		if code != 0 {
			result = os.NewSyscallError("connect", unix.Errno(code))
			return true
		}
		// The poller may wake us for nothing: only a peer proves it.
		if _, err := unix.Getpeername(int(fd)); err != nil {
			return false
		}
		result = nil
		return true
	})
	switch {
	case err == nil:
		return result
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		// The deadline is the context's, whose own timer is a little late.
		return context.DeadlineExceeded
	}
	return err
}

func ignoringEINTR(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func parseNetwork(network string, addr netip.AddrPort) (kind int, remote net.Addr, err error) {
	proto, version := network, ""
	if n := len(network); n == 4 {
		proto, version = network[:3], network[3:]
	}
	switch proto {
	case "tcp":
		kind, remote = unix.SOCK_STREAM, net.TCPAddrFromAddrPort(addr)
	case "udp":
		kind, remote = unix.SOCK_DGRAM, net.UDPAddrFromAddrPort(addr)
	default:
		return 0, nil, net.UnknownNetworkError(network)
	}
	ok := version == "" || version == "4" && addr.Addr().Is4() || version == "6" && addr.Addr().Is6()
	if !ok {
		return 0, nil, fmt.Errorf("dial in network namespace: address %s does not suit network %q", addr, network)
	}
	return kind, remote, nil
}

func sockaddr(addr netip.AddrPort) (family int, sa unix.Sockaddr, err error) {
	ip := addr.Addr()
	if ip.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: ip.As4(), Port: int(addr.Port())}, nil
	}
	if ip.Zone() != "" {
		return 0, nil, fmt.Errorf("dial in network namespace: address %s has a zone", addr)
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: ip.As16(), Port: int(addr.Port())}, nil
}

func opError(network string, remote net.Addr, err error) error {
	return &net.OpError{Op: "dial", Net: network, Addr: remote, Err: err}
}
