package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxToolOutput bounds what is kept of a tool's output for error messages, in
// bytes, at each of its ends: compilers put the cause first, installers last.
const maxToolOutput = 4 << 10

// tool is one program to run. There is no shell: what a folder holds is never
// read as a command.
type tool struct {
	name string // looked up on PATH
	pkg  string // the Debian package that brings it
	args []string
	dir  string
	env  []string // added to this process's
	// out gets standard output; nil sends it where standard error goes.
	out io.Writer
	log io.Writer
	// private gives the tool its own mount namespace, so that nothing it mounts
	// outlives it. Needs root.
	private bool
}

func (t tool) run(ctx context.Context) error {
	path, err := exec.LookPath(t.name)
	if err != nil {
		return fmt.Errorf("%s is not installed: apt-get install %s", t.name, t.pkg)
	}
	keepInherited()
	kept := &excerpt{}
	both := io.MultiWriter(kept, t.log)
	cmd := exec.CommandContext(ctx, path, t.args...)
	cmd.Dir = t.dir
	cmd.Env = append(os.Environ(), t.env...)
	cmd.Stderr = both
	cmd.Stdout = both
	if t.out != nil {
		cmd.Stdout = t.out
	}
	// The whole group goes, first politely so that the tool cleans up after itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if t.private {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	if cmd.Process != nil {
		// A group with no members is the normal case.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", t.name, context.Cause(ctx))
	}
	if err != nil {
		return &toolError{name: t.name, output: kept.String(), err: err}
	}
	return nil
}

// keepInherited keeps the descriptors that this process got from whoever
// started it from the tools. mmdebstrap fails with "Bad fd number" where the
// first ten are taken: it writes the next one's number into a script for dash,
// which knows single digits only. Go's own descriptors are closed on exec anyway.
func keepInherited() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11; else as before
}

// toolError is a tool that failed, with what it said.
type toolError struct {
	name, output string
	err          error
}

func (e *toolError) Error() string {
	if e.output == "" {
		return fmt.Sprintf("%s: %v", e.name, e.err)
	}
	return fmt.Sprintf("%s: %v:\n%s", e.name, e.err, e.output)
}

func (e *toolError) Unwrap() error { return e.err }

// outputOf is what the tool behind err said, or "".
func outputOf(err error) string {
	var te *toolError
	if errors.As(err, &te) {
		return te.output
	}
	return ""
}

// excerpt keeps the beginning and the end of what is written to it. Run has one
// goroutine copying into it at a time, as Stdout and Stderr are the same writer
// or one of them goes elsewhere.
type excerpt struct {
	head, tail []byte
	dropped    bool
}

func (e *excerpt) Write(p []byte) (int, error) {
	n := len(p)
	if room := maxToolOutput - len(e.head); room > 0 {
		k := min(room, len(p))
		e.head = append(e.head, p[:k]...)
		p = p[k:]
	}
	e.tail = append(e.tail, p...)
	if over := len(e.tail) - maxToolOutput; over > 0 {
		e.tail = append(e.tail[:0], e.tail[over:]...)
		e.dropped = true
	}
	return n, nil
}

func (e *excerpt) String() string {
	b := bytes.Clone(e.head)
	if e.dropped {
		b = append(b, "\n[...]\n"...)
	}
	b = append(b, e.tail...)
	return strings.TrimSpace(strings.ToValidUTF8(string(b), "?"))
}
