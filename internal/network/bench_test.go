package network_test

import (
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

// BenchmarkLease measures leases that are taken from the pool, which somebody
// else fills, and such that are made on demand.
func BenchmarkLease(b *testing.B) {
	for _, kind := range kinds {
		for _, c := range []struct {
			name   string
			pool   int
			egress bool
		}{{"pool", 4, false}, {"pool+egress", 4, true}, {"make", 0, false}, {"make+egress", 0, true}} {
			b.Run(string(kind)+"/"+c.name, func(b *testing.B) {
				cfg := testConfig(b)
				cfg.Pools = map[sandbox.LinkKind]int{kind: c.pool}
				m := manager(b, cfg)
				var release time.Duration
				for b.Loop() {
					b.StopTimer()
					if c.pool > 0 {
						waitLeases(b, cfg, c.pool)
					}
					b.StartTimer()
					l := acquire(b, m, network.Options{Kind: kind, Egress: c.egress})
					b.StopTimer()
					start := time.Now()
					if err := l.Release(b.Context()); err != nil {
						b.Fatal(err)
					}
					release += time.Since(start)
					b.StartTimer()
				}
				b.ReportMetric(float64(release.Microseconds())/float64(b.N), "release-us/op")
			})
		}
	}
}

// BenchmarkDial makes one connection after the other from the router to the
// guest, as a gateway without keep-alive does.
func BenchmarkDial(b *testing.B) {
	link := acquire(b, manager(b, testConfig(b)), network.Options{Kind: sandbox.LinkVeth}).Link()
	address := serve(b, link.NetNS, "172.16.0.2:8080", "").String()
	for b.Loop() {
		c, err := netns.Dial(b.Context(), link.DialNS, "tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
