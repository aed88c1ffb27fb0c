package network

import (
	"bufio"
	"io"
	"net"
	"os"
	"slices"
	"strings"
)

// maxResolvers is what C libraries read.
const maxResolvers = 3

// hostResolvers finds the resolvers that sandboxes can use: a stub on
// loopback is no use to them, so where the host has one (systemd-resolved)
// those behind it are taken.
func hostResolvers() []net.IP {
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		found := parseResolvers(f)
		f.Close()
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// parseResolvers reads the nameserver lines of a resolv.conf, but those that
// are not IPv4 or are on loopback.
func parseResolvers(r io.Reader) []net.IP {
	var found []net.IP
	lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for lines.Scan() && len(found) < maxResolvers {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		ip := net.ParseIP(fields[1]).To4()
		known := slices.ContainsFunc(found, ip.Equal)
		if ip != nil && !ip.IsLoopback() && !ip.IsUnspecified() && !ip.IsMulticast() && !known {
			found = append(found, ip)
		}
	}
	return found
}
