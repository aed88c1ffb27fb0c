package network_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

var kinds = []sandbox.LinkKind{sandbox.LinkVeth, sandbox.LinkTAP}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// testUplinks gives each test a range of its own.
func testUplinks() netip.Prefix {
	b := make([]byte, 2)
	rand.Read(b)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + b[0]&63, b[1], 0}), 24)
}

func testConfig(t testing.TB) network.Config {
	testenv.Root(t)
	return network.Config{
		Dir: filepath.Join(t.TempDir(), "net"), NodeID: random(4), Uplinks: testUplinks(),
		DNS: []net.IP{net.IPv4(203, 0, 113, 53)},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// manager makes a manager that is closed, and has left nothing, at the end.
func manager(t testing.TB, cfg network.Config) *network.Manager {
	t.Helper()
	m, err := network.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		nothingLeft(t, cfg)
	})
	return m
}

func acquire(t testing.TB, m *network.Manager, o network.Options) *network.Lease {
	t.Helper()
	l, err := m.Acquire(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// nothingLeft checks for all that a manager makes outside its namespaces.
func nothingLeft(t testing.TB, cfg network.Config) {
	t.Helper()
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			t.Errorf("left in Dir: %s", e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), cfg.Dir) {
		t.Errorf("mounts left in %s", cfg.Dir)
	}
	for _, link := range hostLinks(t, cfg) {
		t.Errorf("interface left: %s", link)
	}
	if hostTable(t, cfg) {
		t.Error("nftables table left")
	}
}

func hostLinks(t testing.TB, cfg network.Config) (names []string) {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "sk"+cfg.NodeID) {
			names = append(names, l.Name)
		}
	}
	return names
}

func hostTable(t testing.TB, cfg network.Config) bool {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == "skep-"+cfg.NodeID {
			return true
		}
	}
	return false
}

// serve answers every TCP connection in the namespace ("" for the host's)
// with a greeting.
func serve(t testing.TB, ns, address, greeting string) net.Addr {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	}
	var err error
	if ns == "" {
		err = listen()
	} else {
		err = netns.Do(ns, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, greeting)
			c.Close()
		}
	}()
	return l.Addr()
}

// greet dials from a namespace and returns what the server says.
func greet(t testing.TB, ns, address string, wait time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	c, err := netns.Dial(ctx, ns, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	b, err := io.ReadAll(c)
	return string(b), err
}

const (
	soon  = 10 * time.Second       // for what must work
	never = 400 * time.Millisecond // for what must not
)

func mustReach(t testing.TB, ns, address, greeting string) {
	t.Helper()
	if got, err := greet(t, ns, address, soon); err != nil || got != greeting {
		t.Errorf("reach %s: got %q, %v; want %q", address, got, err, greeting)
	}
}

func mustNotReach(t testing.TB, ns, address string) {
	t.Helper()
	if got, err := greet(t, ns, address, never); err == nil {
		t.Errorf("reached %s, which said %q", address, got)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := testConfig(t)
	tests := map[string]func(*network.Config){
		"NodeID":       func(c *network.Config) { c.NodeID = "ABCDEF01" },
		"Dir":          func(c *network.Config) { c.Dir = "" },
		"kind":         func(c *network.Config) { c.Pools = map[sandbox.LinkKind]int{"wifi": 1} },
		"pool":         func(c *network.Config) { c.Pools = map[sandbox.LinkKind]int{sandbox.LinkTAP: -1} },
		"Uplinks":      func(c *network.Config) { c.Uplinks = netip.MustParsePrefix("fd00::/64") },
		"overlaps":     func(c *network.Config) { c.Uplinks = netip.MustParsePrefix("127.0.0.0/16") },
		"DNS":          func(c *network.Config) { c.DNS = []net.IP{net.IPv6loopback} },
		"AllowPrivate": func(c *network.Config) { c.AllowPrivate = []netip.Prefix{{}} },
	}
	for name, spoil := range tests {
		cfg := good
		spoil(&cfg)
		m, err := network.New(t.Context(), cfg)
		if err == nil {
			m.Close(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("bad %s: error %v does not say so", name, err)
		}
	}
	m := manager(t, good)
	if _, err := network.New(t.Context(), good); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second manager on the same Dir: %v", err)
	}
	if _, err := m.Acquire(t.Context(), network.Options{Kind: "wifi"}); err == nil {
		t.Error("acquired a link of unknown kind")
	}
}

func TestVethConnectivity(t *testing.T) {
	t.Parallel()
	m := manager(t, testConfig(t))
	l := acquire(t, m, network.Options{Kind: sandbox.LinkVeth})
	link := l.Link()
	serve(t, link.NetNS, "172.16.0.2:8080", "hello")
	mustReach(t, link.DialNS, "172.16.0.2:8080", "hello")
	if n := connections(t, link.DialNS); n != 0 {
		t.Errorf("%d dialled connections are tracked", n)
	}
	// Answers in UDP pass too.
	var pc net.PacketConn
	err := netns.Do(link.NetNS, func() (err error) {
		pc, err = net.ListenPacket("udp4", "172.16.0.2:53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 10)
		if n, from, err := pc.ReadFrom(buf); err == nil {
			pc.WriteTo(buf[:n], from)
		}
	}()
	c, err := netns.Dial(t.Context(), link.DialNS, "udp", "172.16.0.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(soon))
	echo := make([]byte, 4)
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(echo); err != nil || string(echo[:n]) != "ping" {
		t.Errorf("UDP echo %q, %v", echo[:n], err)
	}
	if len(link.DNS) != 0 {
		t.Errorf("resolvers without egress: %v", link.DNS)
	}
	// The guest may not dial the router.
	serve(t, link.DialNS, "172.16.0.1:8080", "router")
	mustNotReach(t, link.NetNS, "172.16.0.1:8080")
}

func TestIdenticalInsides(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			m := manager(t, cfg)
			a, b := acquire(t, m, network.Options{Kind: kind}), acquire(t, m, network.Options{Kind: kind})
			for _, ns := range []func(*network.Lease) string{
				func(l *network.Lease) string { return l.Link().NetNS },
				func(l *network.Lease) string { return l.Link().DialNS },
			} {
				x, y := describe(t, ns(a)), describe(t, ns(b))
				if x != y {
					t.Errorf("insides differ:\n%s\n%s", x, y)
				}
				t.Log(x)
			}
			if a.ID() == b.ID() || a.Link().NetNS == b.Link().NetNS {
				t.Error("leases share something")
			}
			if hostTable(t, cfg) || len(hostLinks(t, cfg)) > 0 {
				t.Error("the host was changed without egress")
			}
		})
	}
}

// describe says what is in a namespace.
func describe(t testing.TB, ns string) string {
	t.Helper()
	var b strings.Builder
	err := netns.Do(ns, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() != "veth" && l.Type() != "tuntap" && l.Attrs().Name != "lo" {
				continue // some kernels put tunnel devices everywhere
			}
			a := l.Attrs()
			fmt.Fprintf(&b, "%d %s %s mtu %d %s %s\n", a.Index, a.Name, a.HardwareAddr, a.MTU, a.Flags, a.OperState)
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				fmt.Fprintf(&b, "  %s\n", a.IPNet)
			}
			neighbours, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, n := range neighbours {
				fmt.Fprintf(&b, "  neighbour %s %s %d\n", n.IP, n.HardwareAddr, n.State)
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, r := range routes {
			fmt.Fprintf(&b, "route %s via %s\n", r.Dst, r.Gw)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPool(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			cfg.Pools = map[sandbox.LinkKind]int{kind: 3}
			m := manager(t, cfg)
			for range 3 {
				waitLeases(t, cfg, 3)
				acquire(t, m, network.Options{Kind: kind}).Release(t.Context())
			}
			waitLeases(t, cfg, 3)
		})
	}
}

// waitLeases waits until that many leases exist.
func waitLeases(t testing.TB, cfg network.Config, want int) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		dirs, err := filepath.Glob(filepath.Join(cfg.Dir, "????????????????"))
		if err != nil {
			t.Fatal(err)
		}
		if len(dirs) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d leases, want %d", len(dirs), want)
		}
		time.Sleep(wait)
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Pools = map[sandbox.LinkKind]int{sandbox.LinkVeth: 2, sandbox.LinkTAP: 2}
	m := manager(t, cfg)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			l, err := m.Acquire(t.Context(), network.Options{Kind: kinds[i%2], Egress: i%5 == 0})
			if err != nil {
				t.Error(err)
				return
			}
			var both sync.WaitGroup
			for range 2 { // idempotent, also at once
				both.Go(func() {
					if err := l.Release(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
		})
	}
	wg.Wait()
	if links := hostLinks(t, cfg); len(links) > 0 {
		t.Errorf("uplinks left after release: %v", links)
	}
	waitLeases(t, cfg, 4)
}

func TestCloseRemovesTaken(t *testing.T) {
	t.Parallel()
	m := manager(t, testConfig(t))
	for _, kind := range kinds {
		acquire(t, m, network.Options{Kind: kind, Egress: true})
	}
	for range 2 {
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Acquire(t.Context(), network.Options{Kind: sandbox.LinkTAP}); !errors.Is(err, network.ErrClosed) {
		t.Errorf("acquire after close: %v", err)
	}
}
