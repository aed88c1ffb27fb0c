package migration_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox/qemu/launcher"
	"github.com/skep-dev/skep/internal/sandbox/qemu/migration"
)

// BenchmarkRestore measures from the start of QEMU to the answer of a guest
// that touches 6 MB, far apart, of its memory. Cold means that the snapshot's
// files are not in the page cache.
func BenchmarkRestore(b *testing.B) {
	s := snapshot(b)
	const request = "touch 1500"
	ctx := deadline(b, 10*time.Minute)
	p := page(ctx, b, s, func(c *migration.Config) { c.Record = true })
	p.ask(ctx, request, "touched")
	rec := p.source.StopRecording()
	p.kill()
	set := filepath.Join(b.TempDir(), "set")
	if err := pager.WriteWorkingSet(ctx, set, rec, s.image(b)); err != nil {
		b.Fatal(err)
	}
	plain := func(o *options) {}
	small := func(o *options) {
		o.start = func(c *exec.Cmd) error { return launcher.Start(c, launcher.Options{NoHugePages: true}) }
	}
	byMap := func(o func(*options), hint bool) func(b *testing.B) func() {
		return func(b *testing.B) func() {
			if hint {
				advise(b, s.memory, rec)
			}
			m := mapped(ctx, b, s, o, writeState(s.state))
			m.ask(ctx, request, "touched")
			return m.kill
		}
	}
	byPager := func(withSet, inMemfd bool) func(b *testing.B) func() {
		return func(b *testing.B) func() {
			var ws *pager.WorkingSet
			p := pageAs(ctx, b, s, func(o *options) {
				if inMemfd {
					o.shared = memfd(b)
				}
			}, func(c *migration.Config) {
				if withSet {
					ws = openSet(b, set)
					c.WorkingSet = ws
				}
			})
			p.awaitResume(ctx)
			p.ask(ctx, request, "touched")
			p.source.StopRecording()
			st := p.source.Stats()
			b.ReportMetric(float64(st.Requests), "requests")
			b.ReportMetric(float64(st.PrefetchTime.Microseconds())/1000, "prefetch-ms")
			return p.kill
		}
	}
	for _, c := range []struct {
		name string
		cold bool
		run  func(b *testing.B) func()
	}{
		{"hot/map", false, byMap(small, false)},
		{"hot/map-huge", false, byMap(plain, false)},
		{"hot/pager", false, byPager(true, false)},
		{"hot/pager-memfd", false, byPager(true, true)},
		{"hot/pager-on-demand", false, byPager(false, false)},
		{"cold/map-huge", true, byMap(plain, false)},
		{"cold/map", true, byMap(small, false)},
		{"cold/map-hint", true, byMap(small, true)},
		{"cold/pager", true, byPager(true, false)},
		{"cold/pager-memfd", true, byPager(true, true)},
		{"cold/pager-on-demand", true, byPager(false, false)},
	} {
		b.Run(c.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				if c.cold {
					drop(b, s.memory)
					drop(b, set)
				}
				b.StartTimer()
				start := time.Now()
				end := c.run(b)
				took = append(took, time.Since(start))
				b.StopTimer()
				end()
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms")
			b.ReportMetric(float64(took[0].Microseconds())/1000, "min-ms")
		})
	}
}

// drop takes a file out of the page cache.
func drop(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	if err != nil {
		t.Fatal(err)
	}
}

// advise has the kernel read the recorded pages ahead.
func advise(t testing.TB, path string, rec pager.Recording) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pages := slices.Clone(rec.Pages)
	slices.Sort(pages)
	for i := 0; i < len(pages); {
		j := i + 1
		for j < len(pages) && pages[j] == pages[j-1]+1 {
			j++
		}
		if err := unix.Fadvise(int(f.Fd()), int64(pages[i])*migration.PageSize, int64(j-i)*migration.PageSize, unix.FADV_WILLNEED); err != nil {
			t.Fatal(err)
		}
		i = j
	}
}
