package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/sandbox"
)

func testDiskFull(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	var f struct {
		Bytes  int64
		ENOSPC bool
		Error  string
	}
	mb := s.opts.DiskBytes>>20 + 32
	b.get(t, "/fill", &f, "path", "/srv/big", "mb", fmt.Sprint(mb))
	if !f.ENOSPC || f.Bytes > s.opts.DiskBytes || f.Bytes < s.opts.DiskBytes/2 {
		t.Errorf("writing %d MB to a disk of %d bytes: %+v, want ENOSPC near its end", mb, s.opts.DiskBytes, f)
	}
	b.get(t, "/args", nil) // it lives
	var got string
	if b.get(t, "/read", &got, "path", "/srv/data"); got != "from the image" {
		t.Errorf("/srv/data is %q on a full disk", got)
	}
}

func testMemory(t *testing.T, s *suite) {
	neighbour, hog := s.serve(t, nil), s.serve(t, nil)
	var got string
	hog.get(t, "/hog", &got, "mb", fmt.Sprint(s.opts.MemoryBytes>>22)) // a quarter
	if got != "survived" {
		t.Errorf("taking a quarter of the memory: %q", got)
	}
	ctx := s.ctx(t)
	if body, err := hog.try(ctx, fmt.Sprintf("/hog?mb=%d", 4*s.opts.MemoryBytes>>20), nil); err == nil {
		t.Errorf("taking four times the memory: %s", body)
	} else if ctx.Err() != nil {
		t.Fatalf("taking four times the memory: neither refused nor killed: %v", err)
	}
	if e := hog.wait(t); !e.OOMKilled || e.Code == 0 {
		t.Errorf("hog ended with %+v, want OOMKilled and a code", e)
	}
	neighbour.get(t, "/args", nil)
}

// testMemoryAtOnce has a process that is out of memory before anybody could
// have looked.
func testMemoryAtOnce(t *testing.T, s *suite) {
	b := s.start(t, func(spec *sandbox.Spec) {
		spec.Process.Args = []string{"/guest", "hog", fmt.Sprint(4 * s.opts.MemoryBytes >> 20)}
	})
	if e := b.wait(t); !e.OOMKilled || e.Code == 0 {
		t.Errorf("ended with %+v, want OOMKilled and a code", e)
	}
}

// testStall has a process take nearly all memory, and then read pages of its
// program that there is no room for: each is gone when it is wanted. The
// kernel does not always call that out of memory. Where a driver has room left,
// the process comes to its end.
func testStall(t *testing.T, s *suite) {
	b := s.start(t, func(spec *sandbox.Spec) {
		spec.Process.Args = []string{"/guest", "stall", "46"}
		spec.Resources.MemoryBytes = 48 << 20
	})
	if e := b.wait(t); e.OOMKilled == (e.Code == 0) {
		t.Errorf("ended with %+v, want either OOMKilled and a code, or neither", e)
	} else {
		t.Log(e)
	}
}

func testCPU(t *testing.T, s *suite) {
	const limit = 0.3 // of one CPU
	b := s.serve(t, func(spec *sandbox.Spec) { spec.Resources.CPUMillis = 1000 * limit })
	before, err := b.sb.Stats(s.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	b.get(t, "/burn", nil, "ms", "3000", "threads", "2")
	wall := time.Since(start)
	after, err := b.sb.Stats(s.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	used := after.CPUTime - before.CPUTime
	share := used.Seconds() / wall.Seconds()
	t.Logf("used %v in %v: %.2f CPUs", used, wall, share)
	if share > 2*limit || used <= 0 {
		t.Errorf("used %.2f CPUs with a limit of %.2f", share, limit)
	}
}

func testPIDs(t *testing.T, s *suite) {
	const limit = snapshotPIDs // all must fit into the memory, here too
	b := s.serve(t, func(spec *sandbox.Spec) { spec.Resources.PIDs = limit })
	var f struct {
		Started int
		Error   string
	}
	b.get(t, "/fork", &f, "n", "500")
	if f.Started > limit || f.Error == "" {
		t.Errorf("fork bomb with a limit of %d: %+v", limit, f)
	}
	if f.Started < limit/4 {
		t.Errorf("only %d of %d processes could be started: %s", f.Started, limit, f.Error)
	}
	b.get(t, "/args", nil)
}

func testStats(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	before, err := b.sb.Stats(s.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	const mb = 48
	b.get(t, "/hog", nil, "mb", fmt.Sprint(mb))
	b.get(t, "/burn", nil, "ms", "300")
	after, err := b.sb.Stats(s.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("before %+v, after %+v", before, after)
	if before.MemoryBytes <= 0 || before.CPUTime <= 0 {
		t.Errorf("Stats() = %+v at the start", before)
	}
	if grown := after.MemoryBytes - before.MemoryBytes; grown < mb<<20/2 {
		t.Errorf("memory grew by %d bytes while the function took %d MB", grown, mb)
	}
	if after.CPUTime-before.CPUTime < 50*time.Millisecond {
		t.Errorf("CPU time went from %v to %v during 300 ms of work", before.CPUTime, after.CPUTime)
	}
}

func testMany(t *testing.T, s *suite) {
	boxes := make([]*box, many)
	for i := range boxes {
		boxes[i] = s.prepare(t, false, nil)
	}
	// Errors, not t.Fatal, on the other goroutines.
	all, cancel := context.WithTimeout(context.Background(), many*s.opts.Timeout)
	defer cancel()
	start := time.Now()
	g, ctx := errgroup.WithContext(all)
	g.SetLimit(s.opts.Parallel)
	for i, b := range boxes {
		g.Go(func() (err error) {
			if b.sb, err = s.driver.Create(ctx, b.spec); err != nil {
				return fmt.Errorf("create: %w", err)
			}
			if err := b.sb.Start(ctx); err != nil {
				return fmt.Errorf("start: %w", err)
			}
			text := fmt.Sprint("sandbox ", i)
			return poll(ctx, func() error {
				_, err := b.try(ctx, fmt.Sprintf("/write?path=/srv/own&data=sandbox+%d", i), nil)
				if err != nil {
					return fmt.Errorf("%s: %w", text, err)
				}
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sandboxes answer after %v", many, time.Since(start))
	for i, b := range boxes {
		var got string
		if b.get(t, "/read", &got, "path", "/srv/own"); got != fmt.Sprint("sandbox ", i) {
			t.Errorf("sandbox %d is %q", i, got)
		}
	}
	// All at once, as a node does that stops.
	errs := make(chan error, many)
	for _, b := range boxes {
		b.http.CloseIdleConnections()
		go func() { errs <- b.sb.Destroy(all) }()
	}
	var failed []error
	for range boxes {
		failed = append(failed, <-errs)
	}
	if err := errors.Join(failed...); err != nil {
		t.Errorf("Destroy: %v", err)
	}
}
