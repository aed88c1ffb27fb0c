package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/netns"
)

// maxUplinks is what four hexadecimal digits in the names can count.
const maxUplinks = 1 << 16

// uplink is a veth pair between a router namespace and the host, with the two
// addresses of a /31.
type uplink struct {
	index  uint32
	name   string // on the host
	host   net.IP
	router net.IP
}

// allocate reserves a name and addresses.
func (h *host) allocate() (*uplink, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	total := min(uint32(1)<<(31-h.uplinks.Bits()), maxUplinks)
	for range total {
		index := h.next % total
		h.next = index + 1
		if h.used[index] {
			continue
		}
		h.used[index] = true
		base := h.uplinks.Addr().As4()
		first := binary.BigEndian.Uint32(base[:]) + 2*index
		return &uplink{
			index:  index,
			name:   fmt.Sprintf("%s%04x", uplinkPrefix(h.node), index),
			host:   binary.BigEndian.AppendUint32(nil, first),
			router: binary.BigEndian.AppendUint32(nil, first+1),
		}, nil
	}
	return nil, fmt.Errorf("all %d uplinks of %s are in use: give Uplinks a larger range", total, h.uplinks)
}

func (h *host) free(u *uplink) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.used, u.index)
}

// connect makes the uplink of a router namespace and lets the guest behind
// the named interface use it.
func (h *host) connect(ctx context.Context, u *uplink, router, guest string) error {
	peer, err := os.Open(router)
	if err != nil {
		return err
	}
	defer peer.Close()
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	attrs := linkAttrs(u.name)
	attrs.MTU = h.mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: upName, PeerNamespace: netlink.NsFd(peer.Fd())}
	if err := handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("add uplink %s: %w", u.name, err)
	}
	for name, value := range map[string]string{
		"ipv6/conf/" + u.name + "/disable_ipv6":   "1",
		"ipv4/conf/" + u.name + "/rp_filter":      "1",
		"ipv4/conf/" + u.name + "/arp_ignore":     "1",
		"ipv4/conf/" + u.name + "/send_redirects": "0",
	} {
		if err := setSysctl(name, value); err != nil {
			return err
		}
	}
	mask := net.CIDRMask(31, 32)
	if err := setUp(handle, veth, u.host, mask); err != nil {
		return err
	}
	err = netns.Do(router, func() error {
		if err := h.allowEgress(guest); err != nil {
			return err
		}
		inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer inside.Close()
		up, err := inside.LinkByName(upName)
		if err != nil {
			return fmt.Errorf("find %s: %w", upName, err)
		}
		if err := setUp(inside, up, u.router, mask); err != nil {
			return err
		}
		if err := addDefaultRoute(inside, up, u.host); err != nil {
			return err
		}
		return setSysctl("ipv4/ip_forward", "1")
	})
	if err != nil {
		return err
	}
	return awaitCarrier(ctx, handle, u.name)
}

// chooseUplinks checks the configured range, or finds a default one, and
// claims it until the claim is closed.
func chooseUplinks(configured netip.Prefix) (netip.Prefix, io.Closer, error) {
	taken, err := hostRoutes()
	if err != nil {
		return netip.Prefix{}, nil, err
	}
	overlap := func(p netip.Prefix) (netip.Prefix, bool) {
		for _, t := range taken {
			if t.Overlaps(p) {
				return t, true
			}
		}
		return netip.Prefix{}, false
	}
	if configured.IsValid() {
		p := configured.Masked()
		if !p.Addr().Is4() || p.Bits() > 31 || p.Bits() < 8 {
			return p, nil, fmt.Errorf("network: Uplinks %s must be an IPv4 prefix from /8 to /31", configured)
		}
		if t, bad := overlap(p); bad {
			return p, nil, fmt.Errorf("network: Uplinks %s overlaps the host's route to %s: choose a free range", p, t)
		}
		c, err := claim(p)
		if err != nil {
			return p, nil, fmt.Errorf("network: Uplinks %s: %w: choose a free range", p, err)
		}
		return p, c, nil
	}
	for second := byte(231); second <= 254; second++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16)
		if _, bad := overlap(p); bad {
			continue
		}
		c, err := claim(p)
		if err == nil {
			return p, c, nil
		}
		if !errors.Is(err, errClaimed) {
			return netip.Prefix{}, nil, fmt.Errorf("network: %w", err)
		}
	}
	return netip.Prefix{}, nil, errors.New("network: all of 10.231.0.0/16 to 10.254.0.0/16 are in use, by routes of the host or other skeps: set Uplinks to a free range")
}

// hostRoutes lists the destinations of the host's IPv4 routes, but the
// default route.
func hostRoutes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("network: list the host's routes: %w", err)
	}
	var found []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		if ok && bits > 1 { // VPNs split the default route in two
			found = append(found, netip.PrefixFrom(ip, bits))
		}
	}
	return found, nil
}

// uplinkMTU is the MTU of the host's way out, at most that of the links.
func uplinkMTU() int {
	routes, err := netlink.RouteGet(net.IPv4(192, 0, 2, 1)) // any address outside
	if err != nil || len(routes) == 0 {
		return linkMTU
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil || link.Attrs().MTU < 576 {
		return linkMTU
	}
	return min(linkMTU, link.Attrs().MTU)
}
