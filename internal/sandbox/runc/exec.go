package runc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// Exec implements [sandbox.Sandbox]. It does not use go-runc's, which leaves
// a file in the system's temporary directory if this process dies.
func (s *container) Exec(ctx context.Context, e sandbox.Exec) (_ sandbox.Exit, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("exec in sandbox %s: %w", s.spec.ID, err)
		}
	}()
	if s.now() != running {
		return sandbox.Exit{}, sandbox.ErrNotRunning
	}
	base := s.path(execPrefix + sandbox.NewID())
	config, pid, log := base+".json", base+".pid", base+".log"
	defer func() {
		for _, f := range []string{config, pid, log} {
			_ = os.Remove(f)
		}
	}()
	if err := s.writeProcess(config, e.Process); err != nil {
		return sandbox.Exit{}, err
	}
	//nolint:noctx // killExec follows ctx: killing runc would leave its child.
	cmd := exec.Command(s.driver.command, "--root", s.path(stateDir), "--log", log, "--log-format", "json",
		"exec", "--process", config, "--pid-file", pid, s.spec.ID)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdio{in: e.Stdin, out: e.Stdout, err: e.Stderr}.Set(cmd)
	if err := ctx.Err(); err != nil {
		return sandbox.Exit{}, err
	}
	if err := cmd.Start(); err != nil {
		return sandbox.Exit{}, missing(s.driver.command, err)
	}
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-done:
		case <-ctx.Done():
			killExec(cmd.Process, pid, done)
		}
	}()
	werr := cmd.Wait()
	close(done)
	<-stopped
	if err := ctx.Err(); err != nil && werr != nil {
		return sandbox.Exit{}, err
	}
	var ee *exec.ExitError
	if werr != nil && !errors.As(werr, &ee) {
		return sandbox.Exit{}, werr
	}
	if readPID(pid) == 0 {
		if s.now() != running {
			return sandbox.Exit{}, sandbox.ErrNotRunning
		}
		return sandbox.Exit{}, errors.New(orElse(lastError(log), "runc could not start the process"))
	}
	exit := sandbox.Exit{At: time.Now()}
	exit.Code, exit.Signal = exitCode(cmd.ProcessState.ExitCode())
	if exit.Code != 0 {
		exit.Reason = lastError(log)
	}
	return exit, nil
}

func (s *container) writeProcess(file string, p sandbox.Process) error {
	image, closer, err := ocispec.OpenImage(s.spec.Rootfs)
	if err != nil {
		return err
	}
	defer closer.Close()
	process, err := ocispec.Process(&s.spec, image, p)
	if err != nil {
		return err
	}
	text, err := json.Marshal(process)
	if err != nil {
		return fmt.Errorf("encode process: %w", err)
	}
	return os.WriteFile(file, text, 0o600)
}

// killExec kills a process, which leads a session of its own, and at last
// its runc. Until runc has ended the process's ID is not given to another,
// because runc is its parent.
func killExec(runc *os.Process, pidFile string, done <-chan struct{}) {
	end := time.Now().Add(2 * time.Second)
	for wait := time.Millisecond; time.Now().Before(end); wait = min(2*wait, 50*time.Millisecond) {
		if pid := readPID(pidFile); pid > 1 {
			_ = unix.Kill(-pid, unix.SIGKILL)
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-done:
			return
		case <-time.After(wait):
		}
	}
	_ = runc.Kill()
}

// maxLog bounds what is read of a log of runc's: the guest has a say in it.
const maxLog = 1 << 20

// lastError is the last error in a log of runc's, "" if there is none.
func lastError(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxLog))
	if err != nil {
		return ""
	}
	return parseLog(text)
}

func parseLog(text []byte) string {
	last := ""
	for line := range bytes.Lines(text) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = strings.TrimSpace(entry.Msg)
		}
	}
	return last
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// stdio gives files to runc as they are; nil is /dev/null.
type stdio struct{ in, out, err *os.File }

// Set sets a command's files, leaving out nil ones: a nil *os.File in an
// interface would not be nil.
func (s stdio) Set(cmd *exec.Cmd) {
	if s.in != nil {
		cmd.Stdin = s.in
	}
	if s.out != nil {
		cmd.Stdout = s.out
	}
	if s.err != nil {
		cmd.Stderr = s.err
	}
}

// The rest of go-runc's IO, which asks for pipes: there are none.

func (stdio) Stdin() io.WriteCloser { return nil }
func (stdio) Stdout() io.ReadCloser { return nil }
func (stdio) Stderr() io.ReadCloser { return nil }
func (stdio) Close() error          { return nil }
