package network_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

// internet is a namespace with public-looking and with private addresses that
// the host routes to. Returned are the namespace and the host's own address
// towards it. It needs a host of its own.
func internet(t *testing.T, addresses ...string) (ns string, host net.IP) {
	t.Helper()
	ns = filepath.Join(t.TempDir(), "internet")
	if err := netns.Create(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(ns); err != nil {
			t.Error(err)
		}
	})
	name := "skt" + random(4)
	host = net.IPv4(203, 0, 113, 1)
	err := netns.Do(ns, setLoopbackUp)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "world", PeerNamespace: netlink.NsFd(fd)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	up := func(link netlink.Link, address string) error {
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}
	if err := up(veth, host.String()+"/24"); err != nil {
		t.Fatal(err)
	}
	err = netns.Do(ns, func() error {
		world, err := netlink.LinkByName("world")
		if err != nil {
			return err
		}
		if err := up(world, "203.0.113.2/24"); err != nil {
			return err
		}
		for _, a := range addresses {
			if err := up(world, a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// The host's way out has a smaller MTU than anything else.
	if err := netlink.LinkSetMTU(veth, 1300); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Gw: net.IPv4(203, 0, 113, 2)}); err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		p := netip.MustParsePrefix(a)
		dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: veth.Index, Gw: net.IPv4(203, 0, 113, 2)}); err != nil {
			t.Fatal(err)
		}
	}
	return ns, host
}

func setLoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func TestEgress(t *testing.T) {
	t.Parallel()
	if !ownHost(t) {
		return
	}
	cfg := testConfig(t)
	const (
		public   = "203.0.113.2"
		resolver = "203.0.113.53"
		metadata = "169.254.169.254"
		private  = "10.99.77.1"
		allowed  = "10.99.77.2"
	)
	cfg.AllowPrivate = []netip.Prefix{netip.MustParsePrefix(allowed + "/32"), cfg.Uplinks}
	cfg.DNS = []net.IP{net.ParseIP(resolver), net.ParseIP(private)}
	world, host := internet(t, resolver+"/32", metadata+"/32", private+"/32", allowed+"/32")
	for _, ip := range []string{public, metadata, private, allowed} {
		serve(t, world, ip+":80", ip)
	}
	serve(t, world, private+":53", "dns")
	serve(t, "", host.String()+":0", "host")

	m := manager(t, cfg)
	open := acquire(t, m, network.Options{Kind: sandbox.LinkVeth, Egress: true})
	other := acquire(t, m, network.Options{Kind: sandbox.LinkVeth, Egress: true})
	closed := acquire(t, m, network.Options{Kind: sandbox.LinkVeth})

	t.Run("control", func(t *testing.T) { // the world answers the host
		for _, ip := range []string{public, metadata, private, allowed} {
			mustReach(t, "/proc/self/ns/net", ip+":80", ip)
		}
	})
	t.Run("out", func(t *testing.T) {
		guest := open.Link().NetNS
		mustReach(t, guest, public+":80", public)
		mustReach(t, guest, allowed+":80", allowed)
		mustReach(t, guest, private+":53", "dns")
		if got := open.Link().DNS; len(got) != 2 || !got[0].Equal(cfg.DNS[0]) {
			t.Errorf("resolvers %v, want %v", got, cfg.DNS)
		}
	})
	t.Run("never", func(t *testing.T) {
		guest := open.Link().NetNS
		mustNotReach(t, guest, metadata+":80")
		mustNotReach(t, guest, private+":80")
	})
	t.Run("closed", func(t *testing.T) {
		mustNotReach(t, closed.Link().NetNS, public+":80")
		mustNotReach(t, closed.Link().NetNS, private+":53")
	})
	t.Run("host", func(t *testing.T) {
		// A listener on all addresses of the host, tried by each of them.
		all := serve(t, "", "0.0.0.0:0", "host").(*net.TCPAddr)
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		tried := 0
		for _, a := range addrs {
			ip := a.(*net.IPNet).IP
			if ip.To4() == nil || ip.IsLoopback() {
				continue
			}
			tried++
			address := netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip.To4())), uint16(all.Port)).String()
			mustReach(t, "/proc/self/ns/net", address, "host")
			for _, l := range []*network.Lease{open, closed} {
				mustNotReach(t, l.Link().NetNS, address)
			}
			// Not even what controls the router gets in.
			mustNotReach(t, open.Link().DialNS, address)
		}
		if tried < 3 {
			t.Errorf("only %d addresses of the host tried: uplinks missing?", tried)
		}
	})
	t.Run("guests", func(t *testing.T) {
		serve(t, other.Link().NetNS, "0.0.0.0:8080", "other guest")
		mustReach(t, other.Link().DialNS, "172.16.0.2:8080", "other guest")
		uplink := routerUplink(t, other)
		serve(t, other.Link().DialNS, "0.0.0.0:8081", "other router")
		mustNotReach(t, open.Link().NetNS, uplink+":8080")
		mustNotReach(t, open.Link().NetNS, uplink+":8081")
		mustNotReach(t, open.Link().DialNS, uplink+":8081")
		// Try harder: a route to the other's inside, through the host.
		mustNotReach(t, closed.Link().NetNS, "172.16.0.2:8080")
	})
	t.Run("dialled still answers", func(t *testing.T) {
		serve(t, open.Link().NetNS, "172.16.0.2:8082", "in")
		mustReach(t, open.Link().DialNS, "172.16.0.2:8082", "in")
	})
	t.Run("segment size", func(t *testing.T) {
		// The guest's MTU is larger than that of the way out.
		to, from := segmentSizes(t, world, open.Link().NetNS, public)
		if most := 1300 - 40; to > most || from > most {
			t.Errorf("segments of %d bytes to and %d bytes from the guest, want at most %d", to, from, most)
		}
	})
	t.Run("flood", func(t *testing.T) {
		// A guest can take only so many entries of the connection table.
		err := netns.Do(other.Link().NetNS, func() error {
			pc, err := net.ListenPacket("udp4", "172.16.0.2:0")
			if err != nil {
				return err
			}
			defer pc.Close()
			for port := range 6000 {
				// The world's refusals come back as errors here.
				_, _ = pc.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP(public), Port: 1024 + port})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		n := connections(t, other.Link().DialNS)
		if n < 3000 || n > 4200 {
			t.Errorf("%d connections of 6000 were let through, want about 4096", n)
		}
		mustReach(t, open.Link().NetNS, public+":80", public)
	})
	t.Run("another address", func(t *testing.T) {
		// The guest takes a second address and speaks from there.
		guest := open.Link().NetNS
		err := netns.Do(guest, func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr("198.51.100.7/32")
			if err != nil {
				return err
			}
			return netlink.AddrAdd(eth, a)
		})
		if err != nil {
			t.Fatal(err)
		}
		mustReach(t, guest, public+":80", public)
		err = netns.Do(guest, func() error {
			d := net.Dialer{Timeout: never, LocalAddr: &net.TCPAddr{IP: net.IPv4(198, 51, 100, 7)}}
			c, err := d.Dial("tcp4", public+":80")
			if err == nil {
				c.Close()
				t.Error("connected from a spoofed address")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Run("released", func(t *testing.T) {
		name := strings.Join(hostLinks(t, cfg), " ")
		if err := open.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := hostLinks(t, cfg); len(after) != 1 {
			t.Errorf("uplinks before %s, after %v", name, after)
		}
	})
}

func routerUplink(t *testing.T, l *network.Lease) (address string) {
	t.Helper()
	err := netns.Do(l.Link().DialNS, func() error {
		up, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(up, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		address = addrs[0].IP.String()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// connections counts the entries of a namespace's connection table.
func connections(t *testing.T, ns string) (n int) {
	t.Helper()
	err := netns.Do(ns, func() error {
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if err != nil {
			return err
		}
		n, err = strconv.Atoi(strings.TrimSpace(string(b)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// segmentSizes are what a server in the world and the guest may send to each
// other at once.
func segmentSizes(t *testing.T, world, guest, ip string) (to, from int) {
	t.Helper()
	var l net.Listener
	err := netns.Do(world, func() (err error) {
		l, err = net.Listen("tcp4", ip+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := netns.Dial(t.Context(), guest, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return segmentSize(t, s), segmentSize(t, c)
}

func segmentSize(t *testing.T, c net.Conn) (size int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var getErr error
	err = raw.Control(func(fd uintptr) {
		size, getErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	})
	if err := errors.Join(err, getErr); err != nil {
		t.Fatal(err)
	}
	return size
}
