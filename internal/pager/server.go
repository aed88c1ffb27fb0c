package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Fault is a demand fault that was answered.
type Fault struct {
	Offset uint64 // in the image, bytes, of the page's start
	Write  bool   // the access was a write
	Zero   bool   // the page was zeros
}

// Config is what a Server needs.
type Config struct {
	// UFFD and Regions come from the handshake. Serve closes UFFD.
	UFFD    *UFFD
	Regions []Region
	// Process is a pidfd of the served process, by which its end is noticed
	// and its death confirmed; below 1 there is none, and then Serve ends
	// only by ctx or when an operation finds the process gone. It stays the
	// caller's.
	Process int
	// Source has the content of every region.
	Source Source
	// WorkingSet, when set, is installed ahead of the faults. It stays the
	// caller's, open until Serve has returned.
	WorkingSet *WorkingSet
	// Record keeps the order of first touch until StopRecording.
	Record bool
	// ZeroAround installs with a page of zeros that is asked for its neighbours
	// that are zeros, which Drift then does not see; not while it records. It
	// is for anonymous memory, where they take no room: a machine that takes
	// fresh memory does not ask for every single page of it.
	ZeroAround bool
	// Workers is the number of threads that answer faults: 1 (the default)
	// for local sources, more where a read waits for a network.
	Workers int
	// Kill ends the served machine at once. It is called before the
	// descriptor closes whenever the machine may still run, as it would go on
	// with zeros in place of its memory. It may be called again when it
	// fails.
	Kill func(ctx context.Context) error
	// KillTimeout bounds each try of Kill; 0 means 5 s.
	KillTimeout time.Duration
	// OnFault, when set, is called after each answered fault, by the thread
	// that answered.
	OnFault func(Fault)
	// Log is for what is not an error of Serve; nil discards it.
	Log *slog.Logger
}

// Errors of Serve.
var (
	// ErrNotKilled means that the machine could not be killed: the descriptor
	// stays open for ever, so that it hangs rather than runs with wrong memory.
	ErrNotKilled = errors.New("machine could not be killed, its page-fault descriptor stays open")
	// errGone ends a worker whose process has gone.
	errGone = errors.New("process has gone")
)

// Server answers the page faults of one machine.
type Server struct {
	cfg      Config
	pageSize uint64
	memory   *memory
	stop     *signal
	stats    counters

	closing func(error) // ends all threads; the first cause is kept
}

// New checks cfg. On error the descriptor is still the caller's.
func New(cfg Config) (*Server, error) {
	fail := func(format string, args ...any) (*Server, error) {
		return nil, fmt.Errorf("pager: "+format, args...)
	}
	if cfg.UFFD == nil || cfg.Source == nil || cfg.Kill == nil {
		return fail("UFFD, Source and Kill must be set")
	}
	if err := ValidateRegions(cfg.Regions); err != nil {
		return fail("%w", err)
	}
	for i, r := range cfg.Regions {
		if r.Offset+r.Size > uint64(cfg.Source.Size()) {
			return fail("region %d ends at offset %#x, the image at %#x", i, r.Offset+r.Size, cfg.Source.Size())
		}
	}
	pageSize := cfg.Regions[0].PageSize
	if cfg.WorkingSet != nil && uint64(cfg.WorkingSet.PageSize()) != pageSize {
		return fail("working set has page size %d, the machine %d: record it again", cfg.WorkingSet.PageSize(), pageSize)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.KillTimeout == 0 {
		cfg.KillTimeout = killTimeout
	}
	cfg.Workers = max(1, cfg.Workers)
	return &Server{
		cfg:      cfg,
		pageSize: pageSize,
		memory:   newMemory(cfg.Regions, pageSize, cfg.WorkingSet, cfg.Record),
	}, nil
}

// Serve answers faults until the process has gone (nil), ctx ends or
// something fails; then it has killed the machine, unless the error wraps
// ErrNotKilled. The descriptor is closed after that. It must be called once.
func (s *Server) Serve(ctx context.Context) error {
	stop, err := newSignal()
	if err != nil {
		return s.finish(ctx, err)
	}
	defer stop.close()
	s.stop = stop

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.closing = cancel
	defer context.AfterFunc(ctx, stop.raise)()

	var workers sync.WaitGroup
	for range s.cfg.Workers {
		workers.Go(func() { s.guard(s.work) })
	}
	if s.cfg.WorkingSet != nil {
		workers.Go(func() { s.guard(func() error { return s.prefetch(ctx) }) })
	}
	<-ctx.Done()
	cause := context.Cause(ctx)
	if errors.Is(cause, errGone) {
		cause = nil
	}
	// The machine dies first, even while a worker waits for a slow source.
	if cause != nil {
		cause = s.kill(ctx, cause)
	}
	workers.Wait()
	return s.release(cause)
}

func (s *Server) finish(ctx context.Context, cause error) error {
	return s.release(s.kill(ctx, cause))
}

// release closes the descriptor, if it is safe.
func (s *Server) release(cause error) error {
	if errors.Is(cause, ErrNotKilled) {
		return cause
	}
	if err := s.cfg.UFFD.Close(); err != nil {
		return errors.Join(cause, fmt.Errorf("close userfaultfd: %w", err))
	}
	return cause
}

// guard runs a thread of the server: its error or panic ends the server. A
// panic must not end the program, whose end would close the descriptor.
func (s *Server) guard(run func() error) {
	defer func() {
		if p := recover(); p != nil {
			s.closing(fmt.Errorf("pager: panic while serving: %v\n%s", p, debug.Stack()))
		}
	}()
	if err := run(); err != nil {
		s.closing(err)
	}
}

const (
	killTries   = 3
	killTimeout = 5 * time.Second // of each, where nothing else is said
)

// kill kills the machine and waits for its end, and returns cause with what
// went wrong.
func (s *Server) kill(ctx context.Context, cause error) error {
	ctx = context.WithoutCancel(ctx)
	cause = fmt.Errorf("pager: %w", cause)
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

func (s *Server) killOnce(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.KillTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("kill machine: panic: %v", p)
		}
	}()
	kerr := s.cfg.Kill(ctx)
	if s.cfg.Process < 1 {
		if kerr != nil {
			return fmt.Errorf("kill machine: %w", kerr)
		}
		return nil
	}
	// Its end counts, whatever Kill says: a killed process runs on until its
	// threads have noticed.
	if kerr != nil {
		if err := unix.PidfdSendSignal(s.cfg.Process, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill machine: %w; signal: %w", kerr, err)
		}
		s.cfg.Log.Warn("pager: Kill failed, process was killed by signal", "error", kerr)
	}
	if err := waitExit(s.cfg.Process, s.cfg.KillTimeout); err != nil {
		return fmt.Errorf("wait for the machine's end: %w", errors.Join(err, kerr))
	}
	return nil
}

// waitExit waits until the process behind a pidfd has ended.
func waitExit(pidfd int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return context.DeadlineExceeded
		}
		n, err := unix.Poll(fds, int(left/time.Millisecond)+1)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

// signal is an eventfd that, once raised, stays readable.
type signal struct {
	mu     sync.Mutex
	fd     int
	closed bool
}

func newSignal() (*signal, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	return &signal{fd: fd}, nil
}

// raise runs in a goroutine of its own, perhaps after close.
func (s *signal) raise() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		_, _ = unix.Write(s.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

func (s *signal) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	_ = unix.Close(s.fd)
}
