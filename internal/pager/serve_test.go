package pager_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

func TestServe(t *testing.T) {
	for _, kind := range []string{"anon", "memfd", "huge"} {
		t.Run(kind, func(t *testing.T) {
			pages := 400
			if kind == "huge" {
				pages = 6
				needHugePages(t, pages)
			}
			cfg := childConfig{Kind: kind, Pages: pages}
			c := startChild(t, cfg)
			conf := c.config(&pattern{pages: pages, pageSize: cfg.pageSize()})
			conf.Record = true
			s, wait := c.serve(deadline(t), conf)
			order := rand.Perm(pages)
			first, rest := order[:pages/2], order[pages/2:]
			c.look(first, value)
			c.look(first, value)
			rec := s.StopRecording()
			samePages(t, rec.Pages, pagesOf(first))
			c.look(rest, value)
			samePages(t, s.StopRecording().Pages, pagesOf(first))
			c.send("write %d %d", first[0], 42)
			c.expect("done")
			c.look(first[:1], func(uint64) uint64 { return 42 })
			st := s.Stats()
			if st.Faults != uint64(pages) || st.Copied+st.Zeroed != st.Faults || st.Zeroed == 0 {
				t.Errorf("stats %+v for %d pages", st, pages)
			}
			_ = c.in.Close()
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServeRemovedPagesAreZero(t *testing.T) {
	zero := func(uint64) uint64 { return 0 }
	for kind, remove := range map[string]string{"anon": "dontneed", "memfd": "remove"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const pages = 300
			c := startChild(t, childConfig{Kind: kind, Pages: pages})
			s, wait := c.serve(deadline(t), c.config(&pattern{pages: pages, pageSize: pager.PageSize}))
			c.look(sequence(20), value)
			// Of the twelve, ten were there and two never.
			c.send("%s 10 12", remove)
			c.expect("done")
			c.look([]int{10, 11, 12, 19, 20, 21}, zero)
			c.look([]int{9, 22}, value)
			c.send("write 10 7")
			c.expect("done")
			c.look([]int{10}, func(uint64) uint64 { return 7 })
			c.send("unmap 200 20")
			c.expect("done")
			c.look([]int{199, 220}, value)
			if st := s.Stats(); st.Removed != 2 {
				t.Errorf("stats %+v", st)
			}
			_ = c.in.Close()
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Write-protected pages become writable at the first write.
func TestServeWriteProtect(t *testing.T) {
	t.Parallel()
	const pages = 20
	c := startChild(t, childConfig{Kind: "anon", Pages: pages, Protect: true})
	s, wait := c.serve(deadline(t), c.config(&pattern{pages: pages, pageSize: pager.PageSize}))
	c.look(sequence(10), value)
	c.send("protect 0 10")
	c.expect("done")
	c.look(sequence(pages), value)
	for range 2 {
		c.send("write 5 9")
		c.expect("done")
	}
	c.look([]int{5}, func(uint64) uint64 { return 9 })
	if st := s.Stats(); st.Unprotect != 1 {
		t.Errorf("stats %+v", st)
	}
	_ = c.in.Close()
	if err := wait(); err != nil {
		t.Error(err)
	}
}

func TestPrefetch(t *testing.T) {
	for _, tc := range []struct {
		kind   string
		direct bool
	}{{"anon", false}, {"anon", true}, {"memfd", false}, {"huge", false}} {
		t.Run(tc.kind+strconv.FormatBool(tc.direct), func(t *testing.T) {
			pages := 2000
			if tc.kind == "huge" {
				pages = 6
				needHugePages(t, pages)
			}
			cfg := childConfig{Kind: tc.kind, Pages: pages}
			src := &pattern{pages: pages, pageSize: cfg.pageSize()}
			// Every second run of a few pages, in a mixed order.
			rec := pager.Recording{PageSize: cfg.pageSize()}
			for _, start := range rand.Perm(pages / 6) {
				for i := range 3 {
					rec.Pages = append(rec.Pages, uint64(start*6+i))
				}
			}
			ws := workingSet(t, rec, src, tc.direct)
			c := startChild(t, cfg)
			conf := c.config(src)
			conf.WorkingSet = ws
			s, wait := c.serve(deadline(t), conf)
			poll(t, func() bool { return s.Stats().PrefetchTime > 0 })
			st := s.Stats()
			all, zero := ws.Pages()
			if st.PrefetchError != nil || int(st.Prefetched) != all-zero || tc.kind != "huge" && int(st.PreZeroed) != zero {
				t.Errorf("stats %+v, want %d pages, %d zero", st, all, zero)
			}
			c.look(sequence(pages), value)
			if st := s.Stats(); tc.kind != "huge" && int(st.Faults) != pages-all {
				t.Errorf("%d faults after the prefetch of %d of %d pages", st.Faults, all, pages)
			}
			d := s.Drift()
			if d.Size != all || !d.Drifted(0.01) || tc.kind != "huge" && d.Missing != pages-all {
				t.Errorf("drift %+v", d)
			}
			_ = c.in.Close()
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// poll waits until something that nobody signals is so.
func poll(t *testing.T, done func() bool) {
	t.Helper()
	ctx := deadline(t)
	for pause := time.Millisecond; !done(); pause = min(2*pause, 50*time.Millisecond) {
		select {
		case <-ctx.Done():
			t.Fatal("waited in vain")
		case <-time.After(pause):
		}
	}
}

func workingSet(t *testing.T, rec pager.Recording, src pager.Source, direct bool) *pager.WorkingSet {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ws")
	if err := pager.WriteWorkingSet(deadline(t), path, rec, src); err != nil {
		t.Fatal(err)
	}
	ws, err := pager.OpenWorkingSet(path, direct)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.Close() })
	return ws
}

// A damaged set must not reach the machine; its pages are served on demand.
func TestPrefetchDamaged(t *testing.T) {
	t.Parallel()
	const pages = 100
	src := &pattern{pages: pages, pageSize: pager.PageSize}
	path := filepath.Join(t.TempDir(), "ws")
	rec := pager.Recording{PageSize: pager.PageSize, Pages: pagesOf(sequence(pages))}
	if err := pager.WriteWorkingSet(deadline(t), path, rec, src); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[8192] ^= 1 // in the first chunk
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ws, err := pager.OpenWorkingSet(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := ws.Verify(deadline(t)); !errors.Is(err, pager.ErrDamaged) {
		t.Errorf("Verify: %v", err)
	}
	c := startChild(t, childConfig{Kind: "anon", Pages: pages})
	conf := c.config(src)
	conf.WorkingSet = ws
	s, wait := c.serve(deadline(t), conf)
	c.look(sequence(pages), value)
	poll(t, func() bool { return s.Stats().PrefetchTime > 0 })
	if st := s.Stats(); !errors.Is(st.PrefetchError, pager.ErrDamaged) || st.Prefetched != 0 {
		t.Errorf("stats %+v", st)
	}
	// Every page that was asked for is in the set; but it is of no use.
	if d := s.Drift(); d.Missing != 0 || !errors.Is(d.Failed, pager.ErrDamaged) || !d.Drifted(0.3) {
		t.Errorf("drift %+v", d)
	}
	_ = c.in.Close()
	if err := wait(); err != nil {
		t.Error(err)
	}
}

// A file cut short while it is open gives an error, not a signal.
func TestWorkingSetCutShort(t *testing.T) {
	t.Parallel()
	const pages = 1000
	src := &pattern{pages: pages, pageSize: pager.PageSize}
	path := filepath.Join(t.TempDir(), "ws")
	rec := pager.Recording{PageSize: pager.PageSize, Pages: pagesOf(sequence(pages))}
	if err := pager.WriteWorkingSet(deadline(t), path, rec, src); err != nil {
		t.Fatal(err)
	}
	ws, err := pager.OpenWorkingSet(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := ws.Verify(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := ws.Verify(deadline(t)); !errors.Is(err, pager.ErrDamaged) {
		t.Errorf("Verify: %v", err)
	}
	c := startChild(t, childConfig{Kind: "anon", Pages: pages})
	conf := c.config(src)
	conf.WorkingSet = ws
	s, wait := c.serve(deadline(t), conf)
	c.look(sequence(pages), value)
	poll(t, func() bool { return s.Stats().PrefetchTime > 0 })
	if st := s.Stats(); !errors.Is(st.PrefetchError, pager.ErrDamaged) {
		t.Errorf("stats %+v", st)
	}
	_ = c.in.Close()
	if err := wait(); err != nil {
		t.Error(err)
	}
}

// TestNoLeaks needs the process to itself: it does not run in parallel.
func TestNoLeaks(t *testing.T) {
	cycles := 200
	if raceEnabled {
		cycles = 40
	}
	const pages = 64
	src := &pattern{pages: pages, pageSize: pager.PageSize}
	ws := workingSet(t, pager.Recording{PageSize: pager.PageSize, Pages: pagesOf(sequence(pages / 2))}, src, false)
	cycle := func(i int) {
		c := startChild(t, childConfig{Kind: "anon", Pages: pages, Check: true})
		conf := c.config(src)
		conf.WorkingSet = ws
		ctx, cancel := context.WithCancel(deadline(t))
		defer cancel()
		_, wait := c.serve(ctx, conf)
		c.look(sequence(pages), value)
		switch i % 3 {
		case 0:
			_ = c.in.Close()
			if err := wait(); err != nil {
				t.Error(err)
			}
		case 1:
			cancel()
			if err := wait(); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		case 2:
			_ = c.cmd.Process.Kill()
			if err := wait(); err != nil {
				t.Error(err)
			}
		}
		c.stop()
	}
	cycle(0)
	cycle(1)
	fds, routines := openFiles(t), runtime.NumGoroutine()
	for i := range cycles {
		cycle(i)
		if t.Failed() {
			t.FailNow()
		}
	}
	poll(t, func() bool { return openFiles(t) <= fds && runtime.NumGoroutine() <= routines })
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	c := startChild(t, childConfig{Kind: "anon", Pages: 8})
	good := c.config(&pattern{pages: 8, pageSize: pager.PageSize})
	for name, change := range map[string]func(*pager.Config){
		"no uffd":      func(c *pager.Config) { c.UFFD = nil },
		"no source":    func(c *pager.Config) { c.Source = nil },
		"no kill":      func(c *pager.Config) { c.Kill = nil },
		"no regions":   func(c *pager.Config) { c.Regions = nil },
		"short source": func(c *pager.Config) { c.Source = &pattern{pages: 7, pageSize: pager.PageSize} },
		"page size": func(c *pager.Config) {
			src := &pattern{pages: 1, pageSize: pager.HugePageSize}
			c.WorkingSet = workingSet(t, pager.Recording{PageSize: pager.HugePageSize, Pages: []uint64{0}}, src, false)
		},
	} {
		bad := good
		change(&bad)
		if _, err := pager.New(bad); err == nil {
			t.Error(name, "was accepted")
		}
	}
}

func TestUFFDErrors(t *testing.T) {
	needUFFD(t)
	u, err := pager.NewUFFD(0)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(-1, 0, 4*pager.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	base := address(mem)
	src := make([]byte, 4*pager.PageSize)
	if n, err := u.Copy(base, src, true); !errors.Is(err, unix.ENOENT) || n != 0 {
		t.Errorf("unregistered: %d, %v", n, err)
	}
	if err := u.Register(base, uint64(len(mem)), pager.RegisterMissing); err != nil {
		t.Fatal(err)
	}
	if n, err := u.Zero(base+2*pager.PageSize, pager.PageSize, true); err != nil || n != pager.PageSize {
		t.Errorf("zero: %d, %v", n, err)
	}
	// Cut short at the third page, which is there.
	if n, err := u.Copy(base, src, true); !errors.Is(err, unix.EAGAIN) || n != 2*pager.PageSize {
		t.Errorf("short copy: %d, %v", n, err)
	}
	if n, err := u.Copy(base, src[:pager.PageSize], true); !errors.Is(err, unix.EEXIST) || n != 0 {
		t.Errorf("page that exists: %d, %v", n, err)
	}
	if err := u.Wake(base, pager.PageSize); err != nil {
		t.Error(err)
	}
	if err := u.Unregister(base, uint64(len(mem))); err != nil {
		t.Error(err)
	}
	if err := errors.Join(u.Close(), u.Close()); err != nil {
		t.Error(err)
	}
	if _, err := pager.AdoptUFFD(0); err == nil {
		t.Error("standard input was taken for a userfaultfd")
	}
}
