package migration

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/internal/pager"
)

// bitmap has a bit for each page of a block.
type bitmap struct {
	pages uint64
	words []uint64
}

func newBitmap(pages uint64) bitmap { return bitmap{pages, make([]uint64, (pages+63)/64)} }

func (b *bitmap) has(i uint64) bool { return b.words[i/64]&(1<<(i%64)) != 0 }
func (b *bitmap) set(i uint64)      { b.words[i/64] |= 1 << (i % 64) }

// recorder notes which pages are asked for.
type recorder struct {
	mu        sync.Mutex
	open      bool // StopRecording was not called
	record    bool
	touched   bitmap
	wanted    bitmap // in the working set
	order     []uint64
	remaining int
	size      int // of the working set
}

func (r *recorder) init(pages uint64, ws *pager.WorkingSet) {
	r.touched, r.wanted = newBitmap(pages), newBitmap(pages)
	if ws == nil {
		return
	}
	r.size, _ = ws.Pages()
	for _, p := range ws.Recording().Pages {
		if p < pages {
			r.wanted.set(p)
		}
	}
}

func (r *recorder) touch(q request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := q.page; p < q.page+q.count && r.open; p++ {
		if r.touched.has(p) {
			continue
		}
		r.touched.set(p)
		if !r.wanted.has(p) {
			r.remaining++
		}
		if r.record {
			r.order = append(r.order, p)
		}
	}
}

// StopRecording ends the recording, at the first response, and returns it: the
// pages asked for, in order. Later calls return the same. Without
// Config.Record it is empty, but Drift counts up to here all the same. Pages of
// a working set are not in it, as nobody has to ask for them.
func (s *Source) StopRecording() pager.Recording {
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	s.rec.open = false
	return pager.Recording{PageSize: PageSize, Pages: slices.Clone(s.rec.order)}
}

// Drift compares the working set with the requests until StopRecording, or
// until now.
func (s *Source) Drift() pager.Drift {
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	return pager.Drift{Missing: s.rec.remaining, Size: s.rec.size, Failed: s.Stats().PrefetchError}
}

// Stats counts what a Source did so far, in pages where nothing else is said.
type Stats struct {
	Requests   uint64 // messages
	Copied     uint64 // sent on demand with content
	Zeroed     uint64 // sent on demand as zeros
	Raced      uint64 // asked for, but on their way already
	Pushed     uint64 // sent unasked while the machine runs
	Prefetched uint64 // sent before its start with content
	PreZeroed  uint64 // sent before its start as zeros
	PreSkipped uint64 // of the working set, but not of the machine or there twice
	// StartTime is how long everything up to the machine's start took to
	// send, prefetch included; 0 until then.
	StartTime time.Duration
	// PrefetchTime is how much of that the working set took.
	PrefetchTime time.Duration
	// PrefetchError is why it ended early. Pages are served all the same.
	PrefetchError error
	// Completed says that the machine has all its memory.
	Completed bool
}

type counters struct {
	requests, copied, zeroed, raced, pushed atomic.Uint64
	prefetched, preZeroed, preSkipped       atomic.Uint64
	startTime, prefetchTime                 atomic.Int64
	prefetchError                           atomic.Pointer[error]
	ended                                   atomic.Bool
}

// Stats may be called at any time.
func (s *Source) Stats() Stats {
	c := &s.stats
	out := Stats{
		Requests: c.requests.Load(), Copied: c.copied.Load(), Zeroed: c.zeroed.Load(), Raced: c.raced.Load(),
		Pushed: c.pushed.Load(), Prefetched: c.prefetched.Load(), PreZeroed: c.preZeroed.Load(), PreSkipped: c.preSkipped.Load(),
		StartTime: time.Duration(c.startTime.Load()), PrefetchTime: time.Duration(c.prefetchTime.Load()),
		Completed: s.done.Load(),
	}
	if err := c.prefetchError.Load(); err != nil {
		out.PrefetchError = *err
	}
	return out
}
