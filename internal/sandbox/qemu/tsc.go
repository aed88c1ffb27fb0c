package qemu

import (
	"sync"
	"time"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// tscKHz is the counter's frequency. An emulated guest sees the host's counter.
// There is no interface for it that works everywhere, so it is measured: over
// 100 ms the error is some parts per million, as good as a guest's own.
var tscKHz = sync.OnceValue(func() int64 {
	t0, c0 := sampleTSC()
	time.Sleep(100 * time.Millisecond) // the measurement itself
	t1, c1 := sampleTSC()
	return int64(float64(c1-c0) / float64(t1.Sub(t0).Nanoseconds()) * 1e6)
})

// sampleTSC takes the counter and the time together: the best of some tries,
// since the thread may be interrupted between the two.
func sampleTSC() (time.Time, uint64) {
	var at time.Time
	var count uint64
	best := ^uint64(0)
	for range 50 {
		before := rdtsc()
		now := time.Now()
		after := rdtsc()
		if d := after - before; d < best {
			best, at, count = d, now, before+d/2
		}
	}
	return at, count
}
