package migration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

// Errors of Serve.
var (
	// ErrNotKilled means that QEMU could not be killed: its connection stays
	// open for ever, so that it hangs rather than does something else.
	ErrNotKilled = errors.New("QEMU could not be killed, its migration connection stays open")
	// ErrDropped means that QEMU gave the migration up; it says why on its
	// standard error.
	ErrDropped = errors.New("QEMU has closed the migration connection")
	// ErrEnded is returned by Complete when the machine ended before.
	ErrEnded = errors.New("machine has ended")

	errCompleted = errors.New("completed")
)

// Config is what a Source needs.
type Config struct {
	// State is a parsed state without pages of Block. It is only read.
	State *State
	// Block is the block that Memory is the content of. Its sizes are equal.
	Block  string
	Memory pager.Source
	// WorkingSet, when set, is sent before the machine runs. It stays the
	// caller's, open until Serve has returned.
	WorkingSet *pager.WorkingSet
	// Record keeps the order of requests until StopRecording.
	Record bool
	// Push sends everything else from the start on, when nothing is asked for,
	// as Complete does.
	Push bool
	// Conn is our end of a stream socket, whose other end is QEMU's
	// migrate-incoming fd:N. Serve closes it.
	Conn net.Conn
	// Kill ends QEMU at once. It is called before Conn closes whenever the
	// machine may still run, as it would wait for ever for its memory. It may
	// be called again, when it fails and when QEMU has ended already.
	Kill func(ctx context.Context) error
	// KillTimeout bounds each try of Kill; 0 means 5 s.
	KillTimeout time.Duration
	// Exited, when set, is closed when QEMU's process has ended. With it, that
	// is told apart from QEMU giving up the migration.
	Exited <-chan struct{}
	// Log is for what is not an error of Serve; nil discards it.
	Log *slog.Logger
}

// Source is the source of one postcopy migration: the machine's whole memory
// is with it, and QEMU asks for pages as the machine touches them. To QEMU it
// is a migration that takes its time, for the machine's whole life unless it
// is completed (Config.Push, Complete).
//
// If this process dies, QEMU pauses the migration and the machine hangs at the
// next page that it misses: whoever comes next must kill it.
//
// It is record and prefetch as in REAP (Ustiugov et al., ASPLOS 2021, section
// 5), with QEMU's own postcopy in place of the userfaultfd handler.
type Source struct {
	cfg   Config
	state State // a copy, whose blocks may become more
	block int
	stats counters

	pushing  chan struct{} // closed by the first Complete
	pushOnce sync.Once
	served   chan struct{} // closed when Serve is about to return
	done     atomic.Bool   // completed

	closing func(error) // ends all; the first cause is kept

	rec recorder
	// sending is full while somebody has the stream: out and sent.
	sending chan struct{}
	out     *writer
	// sent has a bit for each page of each block. A page that is there must
	// not be sent again: QEMU fails.
	sent []bitmap
}

// request is pages that QEMU waits for.
type request struct {
	block       int
	page, count uint64
}

// New checks cfg. On error the connection is still the caller's.
func New(cfg Config) (*Source, error) {
	fail := func(format string, args ...any) (*Source, error) {
		return nil, fmt.Errorf("postcopy source: "+format, args...)
	}
	if cfg.State == nil || cfg.Memory == nil || cfg.Conn == nil || cfg.Kill == nil {
		return fail("State, Memory, Conn and Kill must be set")
	}
	block, ok := cfg.State.Block(cfg.Block)
	if !ok {
		return fail("the state has no block %q", cfg.Block)
	}
	if size := cfg.State.Blocks[block].Size; uint64(cfg.Memory.Size()) != size {
		return fail("the memory has %d bytes, block %q %d", cfg.Memory.Size(), cfg.Block, size)
	}
	if slices.ContainsFunc(cfg.State.Pages, func(p Page) bool { return p.Block == block }) {
		return fail("the state has pages of block %q: Split the stream first", cfg.Block)
	}
	if len(cfg.State.Devices) > maxPackaged/2 {
		return fail("devices of %d bytes, at most %d", len(cfg.State.Devices), maxPackaged/2)
	}
	if cfg.WorkingSet != nil && cfg.WorkingSet.PageSize() != PageSize {
		return fail("working set has page size %d, the machine %d: record it again", cfg.WorkingSet.PageSize(), PageSize)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.KillTimeout == 0 {
		cfg.KillTimeout = 5 * time.Second
	}
	s := &Source{
		cfg: cfg, state: *cfg.State, block: block,
		pushing: make(chan struct{}), served: make(chan struct{}), sending: make(chan struct{}, 1),
		rec: recorder{open: true, record: cfg.Record},
	}
	s.state.Blocks = slices.Clone(cfg.State.Blocks)
	for _, b := range cfg.State.Blocks {
		s.sent = append(s.sent, newBitmap(b.Size/PageSize))
	}
	s.rec.init(cfg.State.Blocks[block].Size/PageSize, cfg.WorkingSet)
	if cfg.Push {
		s.pushOnce.Do(func() { close(s.pushing) })
	}
	return s, nil
}

// Serve restores the machine and serves its memory until QEMU has ended (nil),
// it has all of it (nil), ctx ends or something fails; then it has killed
// QEMU, unless the error wraps ErrNotKilled. The connection is closed after
// that. It must be called once.
func (s *Source) Serve(ctx context.Context) error {
	defer close(s.served)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.closing = cancel
	s.sending <- struct{}{} // for send, whose introduction comes before all answers
	var threads sync.WaitGroup
	threads.Go(func() { s.guard(func() error { return s.receive(ctx) }) })
	threads.Go(func() { s.guard(func() error { return s.send(ctx) }) })
	if s.cfg.Exited != nil {
		threads.Go(func() {
			select {
			case <-s.cfg.Exited:
				cancel(ErrEnded)
			case <-ctx.Done():
			}
		})
	}
	<-ctx.Done()
	cause := context.Cause(ctx)
	if dropped(cause) && s.exited(ctx) || errors.Is(cause, ErrEnded) {
		cause = nil
	}
	if errors.Is(cause, errCompleted) {
		s.done.Store(true)
		cause = nil
	} else if cause != nil {
		// QEMU dies first, even while a thread waits for a slow source.
		cause = s.kill(ctx, cause)
	}
	_ = s.cfg.Conn.SetDeadline(time.Unix(1, 0)) // wakes both
	threads.Wait()
	if errors.Is(cause, ErrNotKilled) {
		return cause
	}
	if err := s.cfg.Conn.Close(); err != nil && cause != nil {
		cause = errors.Join(cause, fmt.Errorf("close migration connection: %w", err))
	}
	return cause
}

// dropped says if QEMU's end of the connection is gone: either thread may be
// the first to see it.
func dropped(err error) bool {
	return errors.Is(err, ErrDropped) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// exited waits a little for the process's end, which comes just behind that of
// its connection.
func (s *Source) exited(ctx context.Context) bool {
	if s.cfg.Exited == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exitTimeout)
	defer cancel()
	select {
	case <-s.cfg.Exited:
		return true
	case <-ctx.Done():
		return false
	}
}

const exitTimeout = time.Second

// guard runs a thread of the source: its error or panic ends the source. A
// panic must not end the program before QEMU.
func (s *Source) guard(run func() error) {
	defer func() {
		if p := recover(); p != nil {
			s.closing(fmt.Errorf("panic while serving: %v\n%s", p, debug.Stack()))
		}
	}()
	if err := run(); err != nil {
		s.closing(err)
	}
}

const killTries = 3

// kill kills QEMU, and returns cause with what went wrong.
func (s *Source) kill(ctx context.Context, cause error) error {
	ctx = context.WithoutCancel(ctx)
	cause = fmt.Errorf("postcopy source: %w", cause)
	var failures []error
	for range killTries {
		err := s.killOnce(ctx)
		if err == nil {
			return cause
		}
		failures = append(failures, err)
	}
	return errors.Join(cause, fmt.Errorf("%w: %w", ErrNotKilled, errors.Join(failures...)))
}

func (s *Source) killOnce(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.KillTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("kill QEMU: panic: %v", p)
		}
	}()
	if err := s.cfg.Kill(ctx); err != nil {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	if s.cfg.Exited == nil {
		return nil
	}
	select {
	case <-s.cfg.Exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for QEMU's end: %w", ctx.Err())
	}
}

// Complete sends all memory that QEMU does not have yet, and returns when it
// has taken over: the machine needs its source no more, and can be saved. Serve
// returns then, too. It may be called at any time and more than once.
func (s *Source) Complete(ctx context.Context) error {
	s.pushOnce.Do(func() { close(s.pushing) })
	select {
	case <-s.served:
		if !s.done.Load() {
			return fmt.Errorf("complete the machine's memory: %w", ErrEnded)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("complete the machine's memory: %w", ctx.Err())
	}
}
