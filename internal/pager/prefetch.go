package pager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// installSize bounds one installation, in bytes: a removal waits for it. The
	// kernel has no vectored form of UFFDIO_COPY: one call takes one run of
	// consecutive pages as a whole, up to this, and each further run a call.
	installSize = 512 << 10
	// retryPause is how long the prefetch waits for the workers to take the
	// messages of a changing address space.
	retryPause = 100 * time.Microsecond
)

// prefetch installs the working set. Its failure is no failure of the server:
// what is not installed is served on demand.
func (s *Server) prefetch(ctx context.Context) error {
	start := time.Now()
	err := s.cfg.WorkingSet.Walk(ctx, func(run Run, data []byte) error { return s.installRun(ctx, run, data) })
	if werr := s.wakeAll(); err == nil {
		err = werr
	}
	s.stats.prefetchTime.Store(int64(time.Since(start)))
	switch {
	case err == nil:
	case errors.Is(err, errGone):
		return errGone
	default:
		// That Serve is over says nothing about the set.
		if ctx.Err() == nil {
			s.stats.prefetchError.Store(&err)
			s.cfg.Log.Warn("pager: prefetch ended early, the rest is served on demand", "error", err)
		}
	}
	return nil
}

// installRun installs consecutive pages; data is nil for zeros.
func (s *Server) installRun(ctx context.Context, run Run, data []byte) (err error) {
	covered := uint64(0)
	s.memory.split(run, func(a *area, first, count uint64) {
		covered += count
		for count > 0 && err == nil {
			n := min(count, max(1, installSize/s.pageSize))
			var part []byte
			if data != nil {
				skip := (a.Offset/s.pageSize + first - run.Page) * s.pageSize
				part = data[skip : skip+n*s.pageSize]
			}
			err = s.installPart(ctx, a, first, n, part)
			first, count = first+n, count-n
		}
	})
	s.stats.preSkipped.Add(uint64(run.Count) - covered)
	return err
}

// installPart installs pages of one area, step by step as the kernel allows.
func (s *Server) installPart(ctx context.Context, a *area, first, count uint64, data []byte) error {
	for count > 0 {
		done, err := s.installStep(a, first, count, data)
		switch {
		case err == nil:
		case errors.Is(err, unix.EEXIST):
			s.stats.preRaced.Add(1)
			done++
		case errors.Is(err, unix.ENOENT), errors.Is(err, errSkip):
			s.stats.preSkipped.Add(1)
			done++
		case errors.Is(err, unix.EAGAIN):
			if done > 0 {
				break // cut short: the next step shows why
			}
			s.stats.retried.Add(1)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(retryPause):
			}
		case errors.Is(err, unix.ESRCH):
			return errGone
		default:
			return fmt.Errorf("install working set at offset %#x: %w", a.Offset+first*s.pageSize, err)
		}
		first, count = first+done, count-done
		if data != nil {
			data = data[done*s.pageSize:]
		}
	}
	return nil
}

// errSkip means that the first page must not be installed.
var errSkip = errors.New("page was removed")

// installStep makes one call to the kernel and returns the pages installed.
func (s *Server) installStep(a *area, first, count uint64, data []byte) (uint64, error) {
	m := s.memory
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.anyGone {
		n := uint64(0)
		for n < count && !a.gone.has(first+n) {
			n++
		}
		if n == 0 {
			return 0, errSkip
		}
		count = n
	}
	addr, size := a.Base+first*s.pageSize, count*s.pageSize
	if data != nil {
		n, err := s.cfg.UFFD.Copy(addr, data[:size], false)
		s.stats.prefetched.Add(uint64(n) / s.pageSize)
		return uint64(n) / s.pageSize, err
	}
	if s.pageSize != PageSize {
		return 0, errSkip // huge zeros cost a huge page: only on demand
	}
	n, err := s.cfg.UFFD.Zero(addr, size, false)
	s.stats.preZeroed.Add(uint64(n) / s.pageSize)
	return uint64(n) / s.pageSize, err
}

// wakeAll wakes whoever waits for a page that is there by now.
func (s *Server) wakeAll() error {
	for _, a := range s.memory.byAddress {
		switch err := s.cfg.UFFD.Wake(a.Base, a.Size); {
		case err == nil, errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.ESRCH):
			return errGone
		default:
			return fmt.Errorf("wake at %#x: %w", a.Base, err)
		}
	}
	return nil
}
