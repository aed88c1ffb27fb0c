package pager

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// worker answers faults on one thread.
type worker struct {
	*Server
	reader eventReader
	events []Event // of the last read
	queue  []Event // faults read but not answered
	page   *buffer
}

// work answers faults until the process ends or the server stops.
func (s *Server) work() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	page, err := newBuffer(int(s.pageSize))
	if err != nil {
		return err
	}
	defer page.free()
	w := &worker{Server: s, page: page}
	batch := maxMessages
	if s.cfg.Workers > 1 {
		batch = 1 // leave the others something to do
	}
	for {
		if err := w.wait(-1); err != nil {
			return err
		}
		if err := w.read(batch); err != nil {
			return err
		}
		for len(w.queue) > 0 {
			e := w.queue[0]
			w.queue = w.queue[1:]
			if err := w.answer(e); err != nil {
				return err
			}
		}
		w.queue = w.queue[:0:cap(w.queue)]
	}
}

// wait returns when there may be a message or, if timeout is not negative,
// after it. It returns an error when the process has ended or the server is to
// stop.
func (w *worker) wait(timeout time.Duration) error {
	fds := [3]unix.PollFd{
		{Fd: int32(w.cfg.UFFD.fd), Events: unix.POLLIN},
		{Fd: int32(w.stop.fd), Events: unix.POLLIN},
		{Fd: -1, Events: unix.POLLIN},
	}
	if w.cfg.Process > 0 {
		fds[2].Fd = int32(w.cfg.Process)
	}
	var limit *unix.Timespec
	if timeout >= 0 {
		ts := unix.NsecToTimespec(timeout.Nanoseconds())
		limit = &ts
	}
	for {
		_, err := unix.Ppoll(fds[:], limit, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("wait for page faults: %w", err)
		case fds[1].Revents != 0:
			return context.Canceled
		case fds[2].Revents != 0:
			return errGone
		case fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0:
			return fmt.Errorf("wait for page faults: descriptor failed (events %#x)", fds[0].Revents)
		}
		return nil
	}
}

// read takes messages off the descriptor: removals are noted, faults noted and
// queued.
func (w *worker) read(batch int) error {
	m := w.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	w.events, err = w.reader.read(w.cfg.UFFD, w.events[:0], batch)
	if err != nil {
		return err
	}
	for _, e := range w.events {
		switch e.Kind {
		case EventRemove, EventUnmap:
			m.remove(e.Start, e.End)
			w.stats.removed.Add(1)
		case EventFault:
			a := m.at(e.Address)
			if a == nil {
				return fmt.Errorf("page fault at %#x, which is in no region of the handshake", e.Address)
			}
			if e.Flags&faultFlagMinor != 0 {
				return fmt.Errorf("minor fault at %#x: such registrations are not served", e.Address)
			}
			if e.Flags&faultFlagWriteProtect == 0 {
				m.touch(a, (e.Address-a.Base)/m.pageSize)
			}
			w.queue = append(w.queue, e)
		}
	}
	return nil
}

// answer installs the page that a fault waits for.
func (w *worker) answer(e Event) error {
	a := w.memory.at(e.Address)
	page := (e.Address - a.Base) / w.pageSize
	addr, off := a.Base+page*w.pageSize, a.Offset+page*w.pageSize
	w.stats.faults.Add(1)
	if e.Flags&faultFlagWriteProtect != 0 {
		return w.unprotect(addr)
	}
	known := w.cfg.Source.Zero(int64(off), int64(w.pageSize))
	zero := known
	if !zero {
		if err := readFull(w.cfg.Source, w.page.mem, int64(off)); err != nil {
			return fmt.Errorf("serve page fault: %w", err)
		}
		zero = allZero(w.page.mem)
	}
	for {
		installedZero, err := w.install(a, page, addr, zero)
		switch {
		case err == nil:
			if installedZero {
				w.stats.zeroed.Add(1)
			} else {
				w.stats.copied.Add(1)
			}
		case errors.Is(err, unix.EEXIST):
			// Another thread's fault or the prefetch, which does not wake.
			w.stats.raced.Add(1)
			if err := w.wake(addr); err != nil {
				return err
			}
		case errors.Is(err, unix.ENOENT):
			// Unmapped meanwhile; the thread finds out for itself.
			w.stats.vanished.Add(1)
			if err := w.wake(addr); err != nil {
				return err
			}
		case errors.Is(err, unix.EAGAIN):
			w.stats.retried.Add(1)
			if err := w.settle(); err != nil {
				return err
			}
			continue
		case errors.Is(err, unix.ESRCH):
			return errGone
		default:
			return fmt.Errorf("install page at %#x: %w", addr, err)
		}
		if w.cfg.OnFault != nil {
			w.cfg.OnFault(Fault{Offset: off, Write: e.Flags&faultFlagWrite != 0, Zero: installedZero})
		}
		if known {
			return w.zeroAround(a, page)
		}
		return nil
	}
}

// install puts one page in place, zeros if the process has removed it.
func (w *worker) install(a *area, page, addr uint64, zero bool) (bool, error) {
	m := w.memory
	m.mu.RLock()
	defer m.mu.RUnlock()
	zero = zero || a.gone.has(page)
	if zero && w.pageSize == PageSize {
		_, err := w.cfg.UFFD.Zero(addr, w.pageSize, true)
		return true, err
	}
	if zero {
		clear(w.page.mem) // the kernel has no huge page of zeros to give
	}
	_, err := w.cfg.UFFD.Copy(addr, w.page.mem, true)
	return zero, err
}

func (s *Server) wake(addr uint64) error {
	switch err := s.cfg.UFFD.Wake(addr, s.pageSize); {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ESRCH):
		return errGone
	default:
		return fmt.Errorf("wake at %#x: %w", addr, err)
	}
}

func (s *Server) unprotect(addr uint64) error {
	s.stats.unprotect.Add(1)
	switch err := s.cfg.UFFD.WriteProtect(addr, s.pageSize, false); {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAGAIN):
		return s.wake(addr) // it faults again if it still matters
	case errors.Is(err, unix.ESRCH):
		return errGone
	default:
		return fmt.Errorf("clear write protection at %#x: %w", addr, err)
	}
}

// settlePause is how long to wait where the address space is changing but its
// message was already taken: the process's thread has yet to go on.
const settlePause = 50 * time.Microsecond

// settle lets a change of the address space go on: it takes the messages that
// the process waits with.
func (w *worker) settle() error {
	if err := w.read(maxMessages); err != nil {
		return err
	}
	if len(w.events) == 0 {
		return w.wait(settlePause)
	}
	return w.wait(0)
}
