package sandboxtest

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

// benchMB are the sizes of what the benchmarked function holds in memory.
var benchMB = []int{0, 32, 256}

// Benchmark compares booting a sandbox with restoring it, up to the function's
// first response, in each of the driver's modes and for functions of several
// sizes. Medians are reported in milliseconds: "prepare-ms" can be done ahead
// of a request, "start-ms" and "request-ms" cannot.
func Benchmark(b *testing.B, newDriver func(testing.TB) sandbox.Driver, opts Options) {
	testenv.Root(b)
	opts.setDefaults(b)
	s := newSuite(b, newDriver, opts)
	for _, mb := range benchMB {
		large := func(spec *sandbox.Spec) { spec.Resources.MemoryBytes = opts.MemoryBytes + int64(mb)<<20 }
		initialise := func(b *testing.B, x *box) {
			x.ready(b)
			x.get(b, "/remember", nil, "mb", fmt.Sprint(mb))
		}
		b.Run(fmt.Sprintf("%dMB/boot", mb), func(b *testing.B) {
			s.measure(b, func(b *testing.B) *box { return s.prepare(b, false, large) }, initialise)
		})
		if !s.driver.Capabilities().Snapshot {
			continue
		}
		var image sandbox.Image // made when first needed: a filter may leave out all
		for _, mode := range s.driver.Capabilities().RestoreModes {
			b.Run(fmt.Sprintf("%dMB/%s", mb, mode), func(b *testing.B) {
				if len(image.Dirs) == 0 {
					image = s.benchImage(b, large, initialise)
				}
				s.measure(b, func(b *testing.B) *box {
					x := s.prepare(b, false, large)
					x.restore = &sandbox.Restore{Image: image, Mode: mode}
					return x
				}, func(b *testing.B, x *box) { x.get(b, "/count", nil) })
			})
		}
	}
}

// benchImage saves an initialised sandbox, in a folder of the suite's.
func (s *suite) benchImage(b *testing.B, change func(*sandbox.Spec), initialise func(*testing.B, *box)) sandbox.Image {
	b.Helper()
	x := s.serve(b, change)
	initialise(b, x)
	x.http.CloseIdleConnections()
	dir, err := os.MkdirTemp(s.dir, "snapshot-")
	if err != nil {
		b.Fatal(err)
	}
	if err := x.sb.(sandbox.Saver).Save(s.ctx(b), sandbox.SaveOptions{Dir: dir}); err != nil {
		b.Fatal(err)
	}
	x.destroy(b)
	return sandbox.Image{Dirs: []string{dir}}
}

// measure starts sandboxes one after the other, until each has answered.
func (s *suite) measure(b *testing.B, makeBox func(*testing.B) *box, first func(*testing.B, *box)) {
	took := map[string][]time.Duration{} // and other figures
	for b.Loop() {
		b.StopTimer()
		x := makeBox(b)
		b.StartTimer()
		begin := time.Now()
		x.create(b)
		prepared := time.Now()
		x.start(b)
		started := time.Now()
		first(b, x)
		done := time.Now()
		b.StopTimer()
		st, err := x.sb.Stats(s.ctx(b))
		if err != nil {
			b.Fatal(err)
		}
		for name, d := range map[string]time.Duration{
			"cpu-ms":     st.CPUTime, // of all of it
			"prepare-ms": prepared.Sub(begin), "start-ms": started.Sub(prepared),
			"request-ms": done.Sub(started), "start+request-ms": done.Sub(prepared),
		} {
			took[name] = append(took[name], d)
		}
		x.destroy(b)
		b.StartTimer()
	}
	for name, all := range took {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name)
		if name == "start+request-ms" {
			b.ReportMetric(float64(all[0].Microseconds())/1000, "best-ms")
		}
	}
}
