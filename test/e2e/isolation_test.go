package e2e

import (
	"net"
	"net/url"
	"strings"
	"testing"
)

// TestNoEgress: a function reaches nothing but its caller unless allowed.
func TestNoEgress(t *testing.T) {
	t.Parallel()
	s := shared(t)
	other := s.deploy("victim")
	s.get(other, "/")
	// A listener on every address of the host.
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	targets := []string{"169.254.169.254:80", "172.16.0.1:" + port, "172.16.0.2:8081", "1.1.1.1:53", "10.231.0.1:" + port}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.To4() != nil {
			targets = append(targets, net.JoinHostPort(ip.String(), port))
			for _, own := range []string{s.Endpoints.Gateway, s.Endpoints.Registry, s.Endpoints.Metrics, strings.TrimPrefix(s.Endpoints.API, "https://")} {
				_, p, _ := net.SplitHostPort(own)
				targets = append(targets, net.JoinHostPort(ip.String(), p))
			}
		}
	}
	for _, driver := range drivers {
		for _, egress := range []string{"false", "true"} {
			t.Run(driver+"/egress="+egress, func(t *testing.T) {
				t.Parallel()
				s := &skep{s.Skep, t}
				name := s.deploy("egress", "--sandbox", driver, "--egress="+egress)
				s.get(name, "/")
				if r := s.get(name, "/dial?addr="+url.QueryEscape("127.0.0.1:8080")); r.body != "reached\n" {
					t.Fatalf("the probe's own port is not reached, so its failures prove nothing: %q", r.body)
				}
				for _, target := range targets {
					if egress == "true" && target == "1.1.1.1:53" {
						continue // may be reached
					}
					if r := s.get(name, "/dial?addr="+url.QueryEscape(target)); !strings.HasPrefix(r.body, "failed") {
						t.Errorf("%s is reached", target)
					}
				}
			})
		}
	}
}
