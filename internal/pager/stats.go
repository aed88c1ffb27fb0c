package pager

import (
	"slices"
	"sync/atomic"
	"time"
)

// Stats counts what a Server did so far, in pages where nothing else is said.
type Stats struct {
	Faults     uint64 // demand faults answered (messages)
	Copied     uint64 // installed on demand with content
	Zeroed     uint64 // installed on demand as zeros
	Around     uint64 // zeros installed with a neighbour that was asked for
	Raced      uint64 // faults whose page was there already
	Retried    uint64 // operations the kernel asked to repeat
	Removed    uint64 // removal and unmap events
	Vanished   uint64 // faults whose mapping had gone
	Unprotect  uint64 // write-protect faults
	Prefetched uint64 // installed ahead with content
	PreZeroed  uint64 // installed ahead as zeros
	PreRaced   uint64 // to be installed ahead, but there already
	PreSkipped uint64 // of the working set, but removed or in no region
	// PrefetchTime is how long the installation ahead took; 0 until it ends.
	PrefetchTime time.Duration
	// PrefetchError is why it ended early, other than by the end of Serve.
	// Faults are answered all the same.
	PrefetchError error
}

type counters struct {
	faults, copied, zeroed, around, raced, retried, removed, vanished, unprotect atomic.Uint64
	prefetched, preZeroed, preRaced, preSkipped                                  atomic.Uint64
	prefetchTime                                                                 atomic.Int64
	prefetchError                                                                atomic.Pointer[error]
}

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	c := &s.stats
	out := Stats{
		Faults: c.faults.Load(), Copied: c.copied.Load(), Zeroed: c.zeroed.Load(), Around: c.around.Load(), Raced: c.raced.Load(),
		Retried: c.retried.Load(), Removed: c.removed.Load(), Vanished: c.vanished.Load(), Unprotect: c.unprotect.Load(),
		Prefetched: c.prefetched.Load(), PreZeroed: c.preZeroed.Load(),
		PreRaced: c.preRaced.Load(), PreSkipped: c.preSkipped.Load(),
		PrefetchTime: time.Duration(c.prefetchTime.Load()),
	}
	if err := c.prefetchError.Load(); err != nil {
		out.PrefetchError = *err
	}
	return out
}

// StopRecording ends the recording, at the first response, and returns it.
// Later calls return the same. Without Config.Record it is empty, but Drift
// counts up to here all the same.
func (s *Server) StopRecording() Recording {
	m := s.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open = false
	return Recording{PageSize: int(m.pageSize), Pages: slices.Clone(m.order)}
}

// Drift compares the working set with the faults until StopRecording, or until
// now.
func (s *Server) Drift() Drift {
	m := s.memory
	m.mu.RLock()
	defer m.mu.RUnlock()
	d := Drift{Missing: m.remaining, Failed: s.Stats().PrefetchError}
	if s.cfg.WorkingSet != nil {
		d.Size, _ = s.cfg.WorkingSet.Pages()
	}
	return d
}
