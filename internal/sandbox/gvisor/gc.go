package gvisor

import (
	"math"
	"runtime/debug"
	"time"
)

// A sandbox's kernel is a Go program whose heap grows from nothing to a few
// megabytes while it starts: with Go's default it would be collected several
// times just then, for nothing.
const (
	startHeap = 48 << 20 // bytes of heap up to which a start is not disturbed; part of overheadMemory
	startTime = time.Second
)

// deferGC puts off collection until normalGC.
func deferGC() {
	debug.SetMemoryLimit(startHeap)
	debug.SetGCPercent(-1)
}

// normalGC brings Go's default back.
func normalGC() {
	debug.SetGCPercent(100)
	debug.SetMemoryLimit(math.MaxInt64)
}

// idleGC is for a sandbox that is complete and waits: it gives back what its
// making took.
func idleGC() {
	normalGC()
	debug.FreeOSMemory()
}
