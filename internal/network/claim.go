package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// claimPrefix begins the names of the sockets that claim ranges.
const claimPrefix = "skep-uplinks-"

// errClaimed is returned for a range that another manager has.
var errClaimed = errors.New("another skep on this host uses it")

// claim takes a range of addresses for this process until it is closed. Routes
// say too late that a range is in use: they come with the first uplink. The
// claim is an abstract Unix socket: its name is unique in a network namespace,
// taken atomically, and free again when the process has gone, however that was.
func claim(p netip.Prefix) (io.Closer, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "@" + claimPrefix + p.String()})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, errClaimed
	}
	if err != nil {
		return nil, fmt.Errorf("claim the range %s: %w", p, err)
	}
	others, err := claims()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	for _, o := range others {
		if o != p && o.Overlaps(p) {
			return nil, errors.Join(errClaimed, l.Close())
		}
	}
	return l, nil
}

// claims lists the ranges that are claimed, our own included.
func claims() ([]netip.Prefix, error) {
	sockets, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("list claimed ranges: %w", err)
	}
	var all []netip.Prefix
	for line := range strings.Lines(string(sockets)) {
		_, name, ok := strings.Cut(strings.TrimSpace(line), " @"+claimPrefix)
		if p, err := netip.ParsePrefix(name); ok && err == nil {
			all = append(all, p)
		}
	}
	return all, nil
}
