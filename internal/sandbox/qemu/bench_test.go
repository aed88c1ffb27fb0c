package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/testenv"
)

// BenchmarkColdStart boots a machine until its function has answered once, by
// phase; cpu-ms is the host's processor time for all of it.
func BenchmarkColdStart(b *testing.B) {
	testenv.Root(b)
	d := newDriver(b, qemu.AccelAuto)
	img := guestImage(b)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	n, node := newNetwork(ctx, b)
	sums := map[string]time.Duration{}
	for b.Loop() {
		b.StopTimer()
		lease, err := n.Acquire(ctx, network.Options{Kind: sandbox.LinkTAP})
		if err != nil {
			b.Fatal(err)
		}
		spec := &sandbox.Spec{
			ID: sandbox.NewID(), Dir: b.TempDir(), Rootfs: img, Process: sandbox.Process{Args: []string{"/guest"}},
			Resources: sandbox.Resources{MemoryBytes: 128 << 20}, Link: lease.Link(), Cgroup: "skep-" + node + "/bench",
			Stdout: os.Stdout, Stderr: os.Stderr,
		}
		b.StartTimer()
		for name, took := range coldStart(ctx, b, d, spec) {
			sums[name] += took
		}
		b.StopTimer()
		if err := lease.Release(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	for name, sum := range sums {
		b.ReportMetric(float64(sum.Milliseconds())/float64(b.N), name)
	}
}

func coldStart(ctx context.Context, b *testing.B, d *qemu.Driver, spec *sandbox.Spec) map[string]time.Duration {
	b.Helper()
	sb, err := d.Create(ctx, spec)
	if err != nil {
		b.Fatal(err)
	}
	defer sb.Destroy(ctx)
	if err := sb.Start(ctx); err != nil {
		b.Fatal(err)
	}
	took := map[string]time.Duration{}
	for _, p := range sb.Phases() {
		took[p.Name+"-ms"] = p.Took
	}
	begin := time.Now()
	if err := sb.(sandbox.PortWaiter).WaitPort(ctx, 8080); err != nil {
		b.Fatal(err)
	}
	took["port-ms"] = time.Since(begin)
	begin = time.Now()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return sb.Dial(ctx, 8080)
	}}}
	res, err := c.Get("http://function/")
	if err != nil {
		b.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil || string(body) != "hello" {
		b.Fatal(fmt.Errorf("%q: %w", body, err))
	}
	took["request-ms"] = time.Since(begin)
	s, err := sb.Stats(ctx)
	if err != nil {
		b.Fatal(err)
	}
	took["cpu-ms"] = s.CPUTime
	took["memory-MB"] = time.Duration(s.MemoryBytes>>20) * time.Millisecond
	return took
}
