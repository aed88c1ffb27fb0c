package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	gorunc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

type state int

const (
	created state = iota
	running
	exited
)

// container implements sandbox.Sandbox.
type container struct {
	driver *Driver
	spec   sandbox.Spec
	group  *cgroup.Group
	busy   chan struct{} // held by Start and Destroy
	done   chan struct{} // closed when exit is set

	mu        sync.Mutex
	state     state
	destroyed bool     // or about to be
	stalled   bool     // it was killed for that
	init      *os.File // pidfd of the function's process
	stop      context.CancelFunc
	exit      sandbox.Exit
	phases    []sandbox.Phase
}

func (s *container) path(name string) string { return filepath.Join(s.spec.Dir, name) }

// ID implements [sandbox.Sandbox].
func (s *container) ID() string { return s.spec.ID }

// Phases implements [sandbox.Sandbox].
func (s *container) Phases() []sandbox.Phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]sandbox.Phase(nil), s.phases...)
}

// lock serialises Start and Destroy.
func (s *container) lock(ctx context.Context) error {
	select {
	case s.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *container) unlock() { <-s.busy }

func (s *container) now() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Start implements [sandbox.Sandbox].
func (s *container) Start(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return fmt.Errorf("start sandbox %s: %w", s.spec.ID, err)
	}
	defer s.unlock()
	if st := s.now(); st != created {
		return fmt.Errorf("start sandbox %s: it was started or destroyed before", s.spec.ID)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("start sandbox %s: %w", s.spec.ID, err)
	}
	begin := time.Now()
	// runc lives as long as the function, not as long as this call.
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.mu.Lock()
	s.state, s.stop = running, stop
	s.mu.Unlock()
	go func() {
		defer stop()
		status, err := s.driver.client(s.spec.Dir, logFile).Run(run, s.spec.ID, s.spec.Dir, &gorunc.CreateOpts{
			IO:        stdio{out: s.spec.Stdout, err: s.spec.Stderr},
			PidFile:   s.path(pidFile),
			ExtraArgs: []string{"--keep"}, // or it deletes the cgroup, and with it the OOM count
		})
		s.ended(status, err)
	}()
	pid := 0
	err := poll(ctx, func() (bool, error) {
		if pid = readPID(s.path(pidFile)); pid > 0 {
			return true, nil
		}
		select {
		case <-s.done:
			// It may have started and ended between the two looks.
			if pid = readPID(s.path(pidFile)); pid > 0 {
				return true, nil
			}
			return true, errors.New(s.exit.Reason)
		default:
			return false, nil
		}
	})
	if err != nil {
		stop() // or runc could still start what is to be killed
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		return errors.Join(fmt.Errorf("start sandbox %s: %w", s.spec.ID, err), s.kill(cleanup))
	}
	s.adopt(pid)
	go s.killStalled(run)
	s.mu.Lock()
	s.phases = append(s.phases, sandbox.Phase{Name: "run", Took: time.Since(begin)})
	s.mu.Unlock()
	return nil
}

// adopt gets hold of the function's process, so that signals cannot go to
// another that is given its ID later.
func (s *container) adopt(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || !s.group.Contains(string(text)) || s.state != running {
		f.Close()
		return
	}
	s.init = f
}

// ended records how `runc run` ended.
func (s *container) ended(status int, err error) {
	e := sandbox.Exit{At: time.Now()}
	e.Code, e.Signal = exitCode(status)
	switch {
	case status < 0:
		e.Code, e.Signal, e.Reason = 128+int(syscall.SIGKILL), int(syscall.SIGKILL), "killed together with its runc"
	case status == 0 && err != nil: // it did not even start
		e.Code, e.Reason = 1, err.Error()
	case status != 0:
		e.Reason = lastError(s.path(logFile))
	}
	kills, kerr := s.group.OOMKills()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stalled && e.Signal == int(syscall.SIGKILL) {
		e.OOMKilled, e.Reason = true, sandbox.ReasonStalled
	} else if kerr == nil && kills > 0 && e.Code != 0 && !s.destroyed {
		e.OOMKilled = true
		if e.Reason == "" {
			e.Reason = fmt.Sprintf("out of memory: the limit is %d MiB", s.spec.Resources.MemoryBytes>>20)
		}
	}
	if e.Reason == "" && readPID(s.path(pidFile)) == 0 {
		e.Reason = fmt.Sprintf("runc ended with code %d before the function was started", e.Code)
	}
	s.finish(e)
}

// killStalled kills the function if it stops making progress for want of
// memory, until ctx ends with it.
func (s *container) killStalled(ctx context.Context) {
	stalled, err := s.group.WaitStalled(ctx)
	if err != nil {
		slog.Warn("a sandbox is not watched for stalls", "sandbox", s.spec.ID, "error", err)
	}
	s.mu.Lock()
	stalled = stalled && s.state == running && !s.destroyed
	s.stalled = stalled
	s.mu.Unlock()
	if stalled {
		_ = s.group.Kill(ctx) // what is left of it, Destroy kills
	}
}

// finish sets the exit; s.mu is held.
func (s *container) finish(e sandbox.Exit) {
	if s.state != exited {
		s.exit, s.state = e, exited
		if s.init != nil {
			s.init.Close()
			s.init = nil
		}
		close(s.done)
	}
}

// exitCode splits runc's exit status, which does not tell a signal from a
// function that exits with 128 + a signal's number.
func exitCode(status int) (code, signal int) {
	if status > 128 && status <= 128+64 {
		return status, status - 128
	}
	return status, 0
}

// Wait implements [sandbox.Sandbox].
func (s *container) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-s.done:
		return s.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, fmt.Errorf("wait for sandbox %s: %w", s.spec.ID, ctx.Err())
	}
}

// Signal implements [sandbox.Sandbox].
func (s *container) Signal(_ context.Context, sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal sandbox %s: %v is not a signal's number", s.spec.ID, sig)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.init == nil {
		return fmt.Errorf("signal sandbox %s: %w", s.spec.ID, sandbox.ErrNotRunning)
	}
	err := unix.PidfdSendSignal(int(s.init.Fd()), n, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = sandbox.ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("signal sandbox %s: %w", s.spec.ID, err)
	}
	return nil
}

// Dial implements [sandbox.Sandbox].
func (s *container) Dial(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("dial sandbox %s: %d is not a TCP port", s.spec.ID, port)
	}
	if s.now() != running {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, s.spec.ID, sandbox.ErrNotRunning)
	}
	c, err := netns.Dial(ctx, s.spec.Link.DialNS, "tcp", net.JoinHostPort(s.spec.Link.Address.IP.String(), strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, s.spec.ID, err)
	}
	return c, nil
}

// Stats implements [sandbox.Sandbox].
func (s *container) Stats(context.Context) (sandbox.Stats, error) {
	st, err := s.group.Stats()
	if errors.Is(err, fs.ErrNotExist) {
		err = sandbox.ErrNotRunning // destroyed
	}
	if err != nil {
		return sandbox.Stats{}, fmt.Errorf("statistics of sandbox %s: %w", s.spec.ID, err)
	}
	return sandbox.Stats{MemoryBytes: st.MemoryBytes, CPUTime: st.CPUTime}, nil
}

func readPID(file string) int {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
}
