package pager_test

import (
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/skep-dev/skep/internal/pager"
)

// tries is how often a race is run until it went every way.
const tries = 50

// Threads touch the same pages while these are installed ahead: whoever comes
// second finds them there.
func TestServeThreadsRace(t *testing.T) {
	for _, workers := range []int{1, 3} {
		t.Run(strconv.Itoa(workers), func(t *testing.T) {
			t.Parallel()
			var sum pager.Stats
			for n := 0; n < tries && (sum.Raced == 0 || sum.PreRaced == 0); n++ {
				st := raceThreads(t, workers)
				sum.Raced, sum.PreRaced = sum.Raced+st.Raced, sum.PreRaced+st.PreRaced
			}
			t.Logf("%d pages were there when they were asked for, %d when they were to be installed ahead", sum.Raced, sum.PreRaced)
			if sum.Raced == 0 || sum.PreRaced == 0 {
				t.Error("no two have met")
			}
		})
	}
}

func raceThreads(t *testing.T, workers int) pager.Stats {
	t.Helper()
	const pages = 600
	c := startChild(t, childConfig{Kind: "anon", Pages: pages, Check: true})
	defer c.stop()
	src := &pattern{pages: pages, pageSize: pager.PageSize}
	conf := c.config(src)
	conf.Workers, conf.Record = workers, true
	half := pager.Recording{PageSize: pager.PageSize, Pages: pagesOf(rand.Perm(pages)[:pages/2])}
	conf.WorkingSet = workingSet(t, half, src, false)
	c.send("race 8") // first, so that nothing is ahead of them
	s, wait := c.serve(deadline(t), conf)
	c.expect("done")
	rec := s.StopRecording()
	if d := s.Drift(); d.Size != pages/2 || d.Missing != pages-pages/2 || d.Failed != nil {
		t.Errorf("drift %+v", d)
	}
	seen := map[uint64]bool{}
	for _, p := range rec.Pages {
		if seen[p] {
			t.Errorf("page %d recorded twice", p)
		}
		seen[p] = true
	}
	poll(t, func() bool { return s.Stats().PrefetchTime > 0 })
	_ = c.in.Close()
	if err := wait(); err != nil {
		t.Error(err)
	}
	return s.Stats()
}

// TestRemoveDuringPrefetch lets removals meet installations: whatever the
// order, a removed page must read as zeros.
func TestRemoveDuringPrefetch(t *testing.T) {
	t.Parallel()
	const pages = 8192
	src := &pattern{pages: pages, pageSize: pager.PageSize}
	ws := workingSet(t, pager.Recording{PageSize: pager.PageSize, Pages: pagesOf(sequence(pages))}, src, false)
	var sum pager.Stats
	for n := 0; n < 5 || n < tries && (sum.Retried == 0 || sum.PreSkipped == 0); n++ {
		c := startChild(t, childConfig{Kind: "anon", Pages: pages})
		conf := c.config(src)
		conf.WorkingSet = ws
		s, wait := c.serve(deadline(t), conf)
		gone := map[uint64]bool{}
		var all []int
		for range 40 {
			p := rand.IntN(pages/2-16) + rand.IntN(2)*pages/2
			c.send("dontneed %d 16", p)
			c.expect("done")
			for i := p; i < p+16; i++ {
				gone[uint64(i)] = true
				all = append(all, i)
			}
		}
		c.look(all, func(uint64) uint64 { return 0 })
		c.look(sequence(pages), func(p uint64) uint64 {
			if gone[p] {
				return 0
			}
			return value(p)
		})
		_ = c.in.Close()
		if err := wait(); err != nil {
			t.Error(err)
		}
		c.stop()
		st := s.Stats()
		sum.Retried, sum.PreSkipped = sum.Retried+st.Retried, sum.PreSkipped+st.PreSkipped
	}
	t.Logf("%d installations were put off by a removal, %d pages left out", sum.Retried, sum.PreSkipped)
	if sum.Retried == 0 || sum.PreSkipped == 0 {
		t.Error("no removal has met an installation")
	}
}

// A page that a thread waits for is unmapped before anybody has looked: it can
// be installed neither on demand nor ahead, and the thread finds out.
func TestUnmappedWhileAskedFor(t *testing.T) {
	for name, tc := range map[string]struct {
		workers int
		ahead   bool
		met     func(pager.Stats) bool
	}{
		"ahead": {1, true, func(st pager.Stats) bool { return st.Vanished > 0 }},
		// One that has the fault alone is told to try again until another has
		// taken the news of the unmapping.
		"two workers": {2, false, func(st pager.Stats) bool { return st.Vanished > 0 && st.Retried > 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range tries {
				// A signal of Go's scheduler may have the thread find out by itself.
				if tc.met(unmapWhileAsked(t, tc.workers, tc.ahead)) {
					return
				}
			}
			t.Error("no unmapping has met an installation")
		})
	}
}

func unmapWhileAsked(t *testing.T, workers int, ahead bool) pager.Stats {
	t.Helper()
	const pages, first, count = 300, 200, 20
	c := startChild(t, childConfig{Kind: "anon", Pages: pages})
	defer c.stop()
	src := &pattern{pages: pages, pageSize: pager.PageSize}
	conf := c.config(src)
	conf.Workers = workers
	if ahead {
		conf.WorkingSet = workingSet(t, pager.Recording{PageSize: pager.PageSize, Pages: pagesOf(sequence(pages))}, src, false)
	}
	c.send("vanish %d %d", first, count)
	c.expect("unmapped")
	s, wait := c.serve(deadline(t), conf)
	c.expect("no such memory")
	c.look([]int{first - 1, first + count}, value)
	poll(t, func() bool { return !ahead || s.Stats().PrefetchTime > 0 })
	st := s.Stats()
	if st.Vanished > 1 || st.Removed != 1 || ahead && st.PreSkipped != count || st.PrefetchError != nil {
		t.Errorf("stats %+v", st)
	}
	_ = c.in.Close()
	if err := wait(); err != nil {
		t.Error(err)
	}
	return st
}
