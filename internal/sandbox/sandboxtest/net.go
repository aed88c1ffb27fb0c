package sandboxtest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// testNets is where the suite's own servers are: the range for benchmarks of
// RFC 2544, which no machine should be using.
var testNets = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}

func testDial(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	c, err := b.sb.Dial(s.ctx(t), guestPort)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, port := range []int{guestPort + 1, 0, -1, 70000} {
		if c, err := b.sb.Dial(s.ctx(t), port); err == nil {
			c.Close()
			t.Errorf("Dial to port %d succeeded", port)
		} else if !strings.Contains(err.Error(), fmt.Sprint(port)) {
			t.Errorf("Dial to port %d: %v, want an error that names the port", port, err)
		}
	}
	created := s.create(t, nil)
	if c, err := created.sb.Dial(s.ctx(t), guestPort); err == nil {
		c.Close()
		t.Error("Dial before Start succeeded")
	}
}

// greet answers every connection with a word, until the test ends.
func greet(t *testing.T, ln net.Listener) (port string) {
	t.Helper()
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			c.Close()
		}
	}()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// reaches says what came of dialling from inside.
func (b *box) reaches(t *testing.T, address string) (bool, string) {
	t.Helper()
	var got string
	b.get(t, "/dial", &got, "addr", address)
	return strings.HasPrefix(got, "connected"), got
}

func testIsolation(t *testing.T, s *suite) {
	const otherPort = 8081
	b := s.serve(t, nil)
	other := s.serve(t, func(spec *sandbox.Spec) {
		spec.Process.Args = append(spec.Process.Args, fmt.Sprint(":", guestPort), fmt.Sprint(":", otherPort))
	})
	host := greet(t, listen(t, "0.0.0.0:0"))
	var gateway string
	if err := netns.Do(b.spec.Link.DialNS, func() error {
		gateway = greet(t, listen(t, "0.0.0.0:0"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	targets := []string{"169.254.169.254:80", "8.8.8.8:53", b.spec.Link.Gateway.String() + ":" + gateway, b.spec.Link.Gateway.String() + ":" + host}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			targets = append(targets, n.IP.String()+":"+host)
		}
	}
	var wg sync.WaitGroup
	for _, target := range targets {
		wg.Go(func() { // each takes until it times out
			var got string
			if _, err := b.try(b.s.ctx(t), "/dial?addr="+target, &got); err != nil {
				t.Error(err)
			}
			if strings.HasPrefix(got, "connected") {
				t.Errorf("a sandbox without egress reaches %s: %s", target, got)
			}
		})
	}
	wg.Wait()
	// The suite would not notice anything if the guest could not dial at all.
	// The other sandbox has the same address: whoever dials it finds itself.
	self := fmt.Sprintf("%s:%d", b.spec.Link.Address.IP, otherPort)
	if ok, what := b.reaches(t, self); ok || !strings.Contains(what, "refused") {
		t.Errorf("dialling the other sandbox's port: %s; want the own, closed one", what)
	}
	if ok, what := other.reaches(t, self); !ok {
		t.Errorf("a sandbox does not reach itself: %s", what)
	}
}

func testEgress(t *testing.T, s *suite) {
	server, hostEnd := outside(t, s)
	port := greet(t, listen(t, "0.0.0.0:0"))
	with := s.prepare(t, true, nil)
	with.create(t)
	with.start(t)
	with.ready(t)
	if ok, what := with.reaches(t, server); !ok || !strings.HasSuffix(what, "hello") {
		t.Errorf("a sandbox with egress does not reach %s: %s", server, what)
	}
	for _, target := range []string{"169.254.169.254:80", hostEnd + ":" + port, with.spec.Link.Gateway.String() + ":" + port} {
		if ok, what := with.reaches(t, target); ok {
			t.Errorf("a sandbox with egress reaches %s: %s", target, what)
		}
	}
	without := s.serve(t, nil)
	if ok, what := without.reaches(t, server); ok {
		t.Errorf("a sandbox without egress reaches %s: %s", server, what)
	}
}

// outside makes a server in a network namespace of its own, which the host
// routes to, and returns its address and that of the host's end.
func outside(t *testing.T, s *suite) (server, hostEnd string) {
	t.Helper()
	ns := filepath.Join(s.dir, "outside")
	if err := netns.Create(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(ns); err != nil {
			t.Error(err)
		}
	})
	var r [3]byte
	_, _ = rand.Read(r[:])
	base := [4]byte{198, 18 + r[0]&1, r[1], r[2] &^ 3}
	addr := func(last byte) *netlink.Addr {
		ip := net.IPv4(base[0], base[1], base[2], base[3]+last)
		return &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(30, 32)}}
	}
	h, err := vnetns.GetFromPath(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	name := "st" + strings.TrimPrefix(s.parent, "skep-")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(h)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatalf("add link %s: %v", name, err)
	}
	t.Cleanup(func() {
		err := netlink.LinkDel(veth)
		var gone netlink.LinkNotFoundError
		if err != nil && !errors.As(err, &gone) {
			t.Errorf("delete link %s: %v", name, err)
		}
	})
	up := func(name string, a *netlink.Addr) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link))
	}
	if err := up(name, addr(1)); err != nil {
		t.Fatal(err)
	}
	var port string
	if err := netns.Do(ns, func() error {
		if err := up("eth0", addr(2)); err != nil {
			return err
		}
		port = greet(t, listen(t, "0.0.0.0:0"))
		return netlink.RouteAdd(&netlink.Route{Gw: addr(1).IP})
	}); err != nil {
		t.Fatal(err)
	}
	return addr(2).IP.String() + ":" + port, addr(1).IP.String()
}
