package network

import (
	"fmt"
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
	p, err := chooseUplinks(netip.Prefix{})
	if err != nil || p.Bits() != 16 || p.Addr().As4()[0] != 10 {
		t.Errorf("default range %s, %v", p, err)
	}
}
