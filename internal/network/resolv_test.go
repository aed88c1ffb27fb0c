package network

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func TestParseResolvers(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, want string }{
		{"empty", "", "[]"},
		{"plain", "search example.org\nnameserver 192.0.2.53\n", "[192.0.2.53]"},
		{"spaces, comment, no end", "# x\n  nameserver\t192.0.2.53 ; y", "[192.0.2.53]"},
		{"loopback", "nameserver 127.0.0.53\nnameserver ::1\n", "[]"},
		{"IPv6", "nameserver 2001:db8::1\nnameserver 192.0.2.1\n", "[192.0.2.1]"},
		{"twice", "nameserver 192.0.2.1\nnameserver 192.0.2.1\n", "[192.0.2.1]"},
		{"many", strings.Repeat("nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", 2), "[192.0.2.1 192.0.2.2 192.0.2.3]"},
		{"nonsense", "nameserver\nnameserver x\nnameserver 0.0.0.0\nnameserver 224.0.0.1\n", "[]"},
	}
	for _, test := range tests {
		if got := fmt.Sprint(parseResolvers(strings.NewReader(test.text))); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

func FuzzParseResolvers(f *testing.F) {
	f.Add("nameserver 192.0.2.53\n")
	f.Fuzz(func(t *testing.T, text string) {
		found := parseResolvers(strings.NewReader(text))
		if len(found) > maxResolvers {
			t.Errorf("%d resolvers", len(found))
		}
		for _, ip := range found {
			if len(ip) != 4 || ip.IsLoopback() {
				t.Errorf("useless resolver %v", ip)
			}
		}
	})
}

func TestAllocate(t *testing.T) {
	t.Parallel()
	h := &host{node: "0123abcd", uplinks: netip.MustParsePrefix("10.9.8.0/29"), used: map[uint32]bool{}}
	var all []*uplink
	for i := range 4 {
		u, err := h.allocate()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, u)
		got := fmt.Sprint(u.name, " ", u.host, " ", u.router)
		want := fmt.Sprintf("sk0123abcd%04x 10.9.8.%d 10.9.8.%d", i, 2*i, 2*i+1)
		if got != want || len(u.name) > 15 {
			t.Errorf("uplink %s, want %s", got, want)
		}
	}
	if _, err := h.allocate(); err == nil || !strings.Contains(err.Error(), "Uplinks") {
		t.Errorf("range is full: %v", err)
	}
	h.free(all[2])
	if u, err := h.allocate(); err != nil || u.index != 2 {
		t.Errorf("after one is free: %v, %v", u, err)
	}
}

func TestDefaultUplinks(t *testing.T) {
	t.Parallel()
	first, claimed, err := chooseUplinks(netip.Prefix{})
	if err != nil || first.Bits() != 16 || first.Addr().As4()[0] != 10 {
		t.Fatalf("default range %s, %v", first, err)
	}
	second, other, err := chooseUplinks(netip.Prefix{})
	if err != nil || second.Overlaps(first) {
		t.Fatalf("a second manager has %s, the first %s (%v)", second, first, err)
	}
	_ = errors.Join(claimed.Close(), other.Close())
}

func TestClaim(t *testing.T) {
	t.Parallel()
	// Nobody else's: what is claimed need not be an address of any use.
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{240, byte(rand.IntN(256)), byte(rand.IntN(256)), 0}), 24)
	c, err := claim(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []netip.Prefix{p, netip.PrefixFrom(p.Addr(), 30), netip.PrefixFrom(p.Addr(), 16).Masked()} {
		if _, err := claim(other); !errors.Is(err, errClaimed) {
			t.Errorf("%s beside %s: %v", other, p, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = claim(p); err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	_ = c.Close()
}
