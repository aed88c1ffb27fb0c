package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/skep-dev/skep/internal/cgroup"
)

// oomScoreAdj makes the host prefer sandboxes to the daemon when the whole
// machine is out of memory.
const oomScoreAdj = "500"

// Monitor is the process that runs a virtual machine. It implements Machine.
type Monitor struct {
	name    string
	cmd     *exec.Cmd
	console *console
	stderr  tailBuffer
	dead    chan struct{}

	mu     sync.Mutex
	reason string
}

var _ Machine = (*Monitor)(nil)

// NewMonitor is one whose process cmd will be, which is not started yet. It has
// no environment, and what it writes to its standard error is kept. name is the
// program's, for people.
func NewMonitor(name string, cmd *exec.Cmd) *Monitor {
	m := &Monitor{name: name, cmd: cmd, dead: make(chan struct{})}
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.Stderr = &m.stderr
	return m
}

// Follow follows the process, once it has started, to its end. It reads the
// guest's console, which it closes, and puts the process in a cgroup, before it
// has taken any memory worth counting. If that is the error, End must follow;
// the process may just have ended already, for a reason that Explain knows.
func (m *Monitor) Follow(guest io.ReadCloser, g *cgroup.Group) error {
	err := g.Add(m.Pid())
	if err == nil {
		err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", m.Pid()), []byte(oomScoreAdj), 0)
	}
	m.console = readConsole(guest)
	go func() {
		_ = m.cmd.Wait() // how it ended, Explain says
		<-m.console.Done()
		close(m.dead)
	}()
	return err
}

// Pid is the process's number.
func (m *Monitor) Pid() int { return m.cmd.Process.Pid }

// Dead is closed when the process has ended and has been waited for.
func (m *Monitor) Dead() <-chan struct{} { return m.dead }

// Kill ends the process. It is safe at any time: os.Process knows if the
// number is still its own.
func (m *Monitor) Kill() { _ = m.cmd.Process.Kill() }

// End kills the process and waits for its end.
func (m *Monitor) End() {
	m.Kill()
	<-m.dead
}

// Wait waits for the process's end.
func (m *Monitor) Wait(ctx context.Context) error {
	select {
	case <-m.dead:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Note keeps why the machine is about to end, as Explain is to say. The first
// reason counts.
func (m *Monitor) Note(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reason == "" {
		m.reason = reason
	}
}

// Fail kills the machine for a reason that is not its own.
func (m *Monitor) Fail(reason error) {
	m.Note(reason.Error())
	m.Kill()
}

// Explain says why the machine has ended, or does not answer.
func (m *Monitor) Explain() error {
	m.mu.Lock()
	reason := m.reason
	m.mu.Unlock()
	parts := []string{"the virtual machine ended"}
	select {
	case <-m.dead:
		parts = append(parts, m.cmd.ProcessState.String())
	default:
		parts[0] = "the virtual machine does not answer"
	}
	if reason != "" {
		parts = append(parts, reason)
	}
	if s := m.stderr.String(); s != "" {
		parts = append(parts, m.name+" says: "+s)
	}
	if s := m.console.Tail(); s != "" {
		parts = append(parts, "its console says: "+s)
	}
	return errors.New(strings.Join(parts, "; "))
}

// AwaitReady waits until the guest's agent listens.
func (m *Monitor) AwaitReady(ctx context.Context) error {
	select {
	case <-m.console.Ready():
		return nil
	case <-m.dead:
		select {
		case <-m.console.Ready(): // and ended at once, as a probe does
			return nil
		default:
		}
		if m.console.BadTimer() {
			return fmt.Errorf("%w: %w", ErrTimer, m.Explain())
		}
		return m.Explain()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ctx.Err(), m.Explain())
	}
}

// OutOfMemory says if the guest's kernel gave up for want of memory.
func (m *Monitor) OutOfMemory() bool { return m.console.OutOfMemory() }
