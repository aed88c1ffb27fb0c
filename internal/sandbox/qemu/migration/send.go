package migration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/skep-dev/skep/internal/pager"
)

const (
	// pushPages is how many pages are pushed before requests get their turn.
	pushPages = 16
	// maxBatch bounds how many requests are answered together.
	maxBatch = 64
)

// receive reads the return path, and answers what is asked for.
func (s *Source) receive(ctx context.Context) error {
	in := newReplies(s.cfg.Conn)
	var batch []request
	for {
		m, err := in.next()
		if err != nil {
			if errors.Is(err, ErrFormat) && !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("return path: %w", err)
			}
			return fmt.Errorf("%w: %w", ErrDropped, err)
		}
		switch m.kind {
		case replyShut:
			if m.status == 0 && s.stats.ended.Load() {
				return errCompleted
			}
			return fmt.Errorf("%w (status %d)", ErrDropped, m.status)
		case replyPages, replyPagesID:
			block, err := s.find(ctx, m)
			if err != nil {
				return err
			}
			r := request{block, m.start / PageSize, m.length / PageSize}
			if block == s.block {
				s.rec.touch(r)
			}
			s.stats.requests.Add(1)
			batch = append(batch, r)
		}
		if len(batch) == 0 || in.d.r.Buffered() > 0 && len(batch) < maxBatch {
			continue
		}
		if err := s.answer(ctx, batch); err != nil {
			return err
		}
		batch = batch[:0]
	}
}

// Bounds of blocks that a state of devices only does not list.
const (
	maxFirmware       = 32 // blocks
	maxFirmwareMemory = 64 << 20
)

// find is the block of a request. One that is not listed is added, if that can
// be.
func (s *Source) find(ctx context.Context, m reply) (int, error) {
	block, ok := s.state.Block(m.block)
	if !ok {
		if !s.state.DevicesOnly || len(s.state.Blocks) > maxFirmware {
			return 0, fmt.Errorf("%w: request for block %q, which the machine does not have", ErrFormat, m.block)
		}
		if err := s.lock(ctx); err != nil {
			return 0, err
		}
		s.state.Blocks = append(s.state.Blocks, Block{Name: m.block, Size: maxFirmwareMemory})
		s.sent = append(s.sent, newBitmap(maxFirmwareMemory/PageSize))
		block = len(s.state.Blocks) - 1
		s.unlock()
	}
	return block, s.state.Blocks[block].check(m)
}

// send restores the machine, and pushes what is left when it is told to.
func (s *Source) send(ctx context.Context) error {
	s.out = newWriter(ctx, s.cfg.Conn)
	err := s.intro(ctx)
	s.unlock()
	if err != nil {
		return err
	}
	select {
	case <-s.pushing:
	case <-ctx.Done():
		return ctx.Err()
	}
	pages := uint64(s.cfg.Memory.Size()) / PageSize
	for next := uint64(0); next < pages; {
		if err := s.lock(ctx); err != nil {
			return err
		}
		next, err = s.push(next)
		if err == nil && next == pages {
			err = s.finish()
		}
		s.unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// lock takes the stream. Those who wait get it in the order they came, so a
// request waits for one push at most.
func (s *Source) lock(ctx context.Context) error {
	select {
	case s.sending <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Source) unlock() { <-s.sending }

// intro sends everything up to the machine's start. QEMU must be told that
// postcopy may come and be made to discard something before it gets any page:
// then it sees to it that no huge page of zeros comes to lie around it. The
// devices go in a package, which QEMU reads as a whole: loading them touches
// memory, for which the stream must be free.
func (s *Source) intro(ctx context.Context) error {
	start, out := time.Now(), s.out
	st := &s.state
	out.buf = st.appendHeader(out.buf, nil)
	out.buf = appendCommand(out.buf, cmdOpenReturnPath, nil)
	out.buf = appendCommand(out.buf, cmdPostcopyAdvise, appendU64(appendU64(nil, PageSize), PageSize))
	out.buf = st.appendSetup(out.buf, false)
	discard := append(appendName([]byte{0}, s.cfg.Block), 0) // version, name, its end
	discard = appendU64(appendU64(discard, 0), st.Blocks[s.block].Size)
	out.buf = appendCommand(out.buf, cmdDiscard, discard)
	out.begin(sectionPart, st.SectionID)
	for _, p := range st.Pages {
		s.page(p.Block, p.Offset/PageSize, p.Data)
	}
	if s.cfg.WorkingSet != nil {
		if err := s.prefetch(ctx); err != nil {
			return err
		}
	}
	out.end(st.SectionID)

	pack := appendCommand(nil, cmdPostcopyListen, nil)
	pack = append(pack, st.Devices...)
	pack = appendCommand(pack, cmdPostcopyRun, nil)
	out.buf = appendCommand(out.buf, cmdPackaged, appendU32(nil, uint32(len(pack))))
	out.write(pack)
	if err := out.finish("send machine state"); err != nil {
		return err
	}
	s.stats.startTime.Store(int64(time.Since(start)))
	return nil
}

// prefetch sends the working set. Damage in it is no failure: what is not sent
// is served on demand.
func (s *Source) prefetch(ctx context.Context) error {
	start, out := time.Now(), s.out
	err := s.cfg.WorkingSet.Walk(ctx, func(run pager.Run, data []byte) error {
		for i := range uint64(run.Count) {
			page := run.Page + i
			if page >= s.sent[s.block].pages || s.sent[s.block].has(page) {
				s.stats.preSkipped.Add(1)
				continue
			}
			if run.Zero {
				s.page(s.block, page, nil)
				s.stats.preZeroed.Add(1)
				continue
			}
			s.page(s.block, page, data[i*PageSize:(i+1)*PageSize])
			s.stats.prefetched.Add(1)
		}
		return out.err
	})
	s.stats.prefetchTime.Store(int64(time.Since(start)))
	if err == nil || out.err != nil || ctx.Err() != nil {
		return errors.Join(out.err, ctx.Err())
	}
	s.stats.prefetchError.Store(&err)
	s.cfg.Log.Warn("postcopy source: prefetch ended early, the rest is served on demand", "error", err)
	return nil
}

// page sends a page unless it was sent.
func (s *Source) page(block int, page uint64, data []byte) {
	if !s.sent[block].has(page) {
		s.sent[block].set(page)
		s.out.page(&s.state, block, page*PageSize, data)
	}
}

// answer sends what was asked for.
func (s *Source) answer(ctx context.Context, batch []request) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if s.stats.ended.Load() {
		return nil
	}
	s.out.begin(sectionPart, s.state.SectionID)
	sent := uint64(0)
	for _, r := range batch {
		n, err := s.pages(r)
		if err != nil {
			return err
		}
		sent += n
	}
	if sent == 0 {
		s.out.buf = s.out.buf[:0]
		return nil
	}
	s.out.end(s.state.SectionID)
	return s.out.finish("send pages")
}

// pages sends the pages of a request that were not sent.
func (s *Source) pages(r request) (sent uint64, err error) {
	for page := r.page; page < r.page+r.count; page++ {
		if s.sent[r.block].has(page) {
			s.stats.raced.Add(1) // on its way while it was asked for
			continue
		}
		zero, err := s.load(r.block, page)
		if err != nil {
			return sent, err
		}
		sent++
		if zero {
			s.stats.zeroed.Add(1)
		} else {
			s.stats.copied.Add(1)
		}
	}
	return sent, nil
}

// load sends a page from the source.
func (s *Source) load(block int, page uint64) (zero bool, err error) {
	off := int64(page * PageSize)
	if block != s.block || s.cfg.Memory.Zero(off, PageSize) {
		// All that others have is in the state, which was sent.
		s.page(block, page, nil)
		return true, s.out.err
	}
	var data [PageSize]byte
	if n, err := s.cfg.Memory.ReadAt(data[:], off); n < PageSize {
		return false, fmt.Errorf("read page at %#x: %w", off, errors.Join(err, io.ErrUnexpectedEOF))
	}
	zero = isZero(data[:])
	s.page(block, page, data[:])
	return zero, s.out.err
}

// push sends some pages from next on that were not sent, and returns where it
// got to. Zeros need not be sent: a page that QEMU did not get is zeros once
// the migration is over.
func (s *Source) push(next uint64) (uint64, error) {
	out := s.out
	sent := &s.sent[s.block]
	out.begin(sectionPart, s.state.SectionID)
	pushed := 0
	for ; next < sent.pages && pushed < pushPages; next++ {
		if sent.has(next) || s.cfg.Memory.Zero(int64(next*PageSize), PageSize) {
			continue
		}
		if _, err := s.load(s.block, next); err != nil {
			return next, err
		}
		pushed++
	}
	if pushed == 0 {
		out.buf = out.buf[:0]
		return next, nil
	}
	s.stats.pushed.Add(uint64(pushed))
	out.end(s.state.SectionID)
	return next, out.finish("push pages")
}

// finish ends the stream. What is asked for from now on gets no answer: QEMU
// wakes those who wait when it sees the end.
func (s *Source) finish() error {
	out := s.out
	s.stats.ended.Store(true)
	out.begin(sectionEnd, s.state.SectionID)
	out.end(s.state.SectionID)
	out.buf = append(out.buf, sectionEOF)
	return out.finish("end the migration")
}
