package testenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Ports that are given out: below those that Linux takes by itself, for
// connections and for whoever listens on port 0.
const firstPort, ports = 20_000, 10_000

// FreePort gives a TCP port that nothing listens on, on any address, for a
// program that cannot choose one by itself and say which. No test on this
// machine is given it until this process ends: a Unix socket that is never
// closed has the port's name (in the abstract namespace of unix(7), which is,
// as ports are, a network namespace's).
func FreePort() (int, error) {
	for range ports {
		port := firstPort + rand.IntN(ports) //nolint:gosec // no secret
		taken, err := take(port)
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		if !taken {
			continue
		}
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port)) //nolint:gosec,noctx // closed at once
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("find a free port: none in %d tries from %d on", ports, firstPort)
}

// take says if this process alone has the port from now on.
func take(port int) (bool, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@skep-test-port-" + strconv.Itoa(port)})
	if err == nil {
		return true, nil
	}
	_ = unix.Close(fd)
	if errors.Is(err, unix.EADDRINUSE) {
		return false, nil
	}
	return false, os.NewSyscallError("bind", err)
}
