package gvisor

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
	gvboot "gvisor.dev/gvisor/runsc/boot"

	"github.com/skep-dev/skep/internal/sandbox"
)

// linger is how long a launcher stays after the start. A sandbox takes no
// questions once its function has ended. Until the watch has certainly asked,
// only the launcher can tell how it ended, as the sandbox process's parent.
const linger = 2 * time.Second

// watch waits for the function's process to end, and finishes.
func (s *instance) watch(l *launcher) {
	defer l.closePipes()
	release := time.AfterFunc(linger, l.release)
	defer release.Stop()

	var status uint32
	err := call(context.Background(), s.socket, gvboot.ContMgrWait, s.spec.ID, &status)
	e := sandbox.Exit{At: time.Now()}
	if err == nil {
		e.Code, e.Signal = decode(unix.WaitStatus(status))
	} else if r, err := l.await(context.Background(), stepExit); err == nil {
		e.Code, e.Signal = decode(unix.WaitStatus(r.Status))
	} else {
		e.Code, e.Signal = 128+int(unix.SIGKILL), int(unix.SIGKILL)
		e.Reason = "the sandbox was killed from outside"
	}
	if e.Code == 128+int(unix.SIGKILL) {
		if s.stalled.Load() {
			e.OOMKilled, e.Reason = true, sandbox.ReasonStalled
		} else if n, err := s.group.OOMKills(); err == nil && n > 0 {
			e.OOMKilled, e.Reason = true, "out of memory: the function and gVisor used more than the sandbox's limit"
		}
	}
	s.finish(e)
}

// killStalled kills the sandbox if it stops making progress for want of memory.
func (s *instance) killStalled() {
	stalled, err := s.group.WaitStalled(s.life)
	if err != nil {
		slog.Warn("a sandbox is not watched for stalls", "sandbox", s.spec.ID, "error", err)
	}
	if stalled {
		s.stalled.Store(true)
		_ = s.group.Kill(s.life) // what is left of it, Destroy kills
	}
}

func decode(ws unix.WaitStatus) (code, signal int) {
	if ws.Signaled() {
		return 128 + int(ws.Signal()), int(ws.Signal())
	}
	return ws.ExitStatus(), 0
}

// Wait implements sandbox.Sandbox.
func (s *instance) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-s.life.Done():
		return s.exit, nil
	default:
	}
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	if !started {
		return sandbox.Exit{}, errors.Join(sandbox.ErrNotRunning, errors.New("not started"))
	}
	select {
	case <-s.life.Done():
		return s.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, context.Cause(ctx)
	}
}
