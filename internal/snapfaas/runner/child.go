package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/frame"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
	"github.com/skep-dev/skep/internal/snapfaas/host"
)

// Parent starts children.
type Parent struct {
	Host *host.Host
	// Program is the path of firerunner, or of skep, which acts as it is called;
	// Args are its arguments.
	Program string
	Args    []string
	// Stderr takes what children and their guests print.
	Stderr *os.File
}

var _ io.Closer = (*Child)(nil)

// Child is a firerunner with its machine. Its methods are safe for concurrent
// use; requests wait for each other.
type Child struct {
	// Ready is what it said when it was.
	Ready Ready

	place *host.Place
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   io.ReadCloser
	limit time.Duration // of a request
	ended chan struct{} // closed when the process has been waited for

	recorded atomic.Bool

	mu     sync.Mutex // one request at a time
	broken bool       // requests and answers are not in step any more
	close  sync.Once
	err    error // of Close
}

// Start starts a child and waits until its machine is ready. With egress the
// guest reaches public addresses. Close frees the child.
func (p Parent) Start(ctx context.Context, c Config, egress bool) (_ *Child, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	place, err := p.Host.Place(ctx, egress)
	if err != nil {
		return nil, err
	}
	c.State, c.Link = place.State, place.Link
	ch := &Child{place: place, limit: c.Request + stopTimeout, ended: make(chan struct{})}
	if err := ch.run(p); err != nil {
		close(ch.ended)
		return nil, errors.Join(fmt.Errorf("start firerunner: %w", err), ch.Close())
	}
	begin := time.Now()
	stop := context.AfterFunc(ctx, ch.kill)
	defer stop()
	m, err := ch.call(message{Kind: "config", Config: &c}, c.Boot+stopTimeout)
	if err == nil && m.Ready == nil {
		err = fmt.Errorf("firerunner says %.40q instead of ready", m.Kind)
	}
	if err != nil {
		return nil, errors.Join(ctx.Err(), err, ch.Close())
	}
	ch.Ready = *m.Ready
	ch.Ready.Phases = append(ch.Ready.Phases, Phase{"in all", time.Since(begin)})
	return ch, nil
}

func (c *Child) run(p Parent) (err error) {
	c.cmd = exec.Command(p.Program, p.Args...) //nolint:noctx // it outlives ctx
	c.cmd.Args[0] = "firerunner"
	c.cmd.Stderr = p.Stderr
	// The lock says that somebody still uses the tool's folder.
	c.cmd.ExtraFiles = []*os.File{p.Host.Lock()}
	// Ctrl-C is for the parent, which then ends its children in order.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return err
	}
	if c.out, err = c.cmd.StdoutPipe(); err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = c.cmd.Process.Wait() // how it ended, its last message says
		close(c.ended)
	}()
	return nil
}

func (c *Child) kill() {
	if c.cmd.Process != nil {
		_ = c.cmd.Process.Kill()
	}
}

// Ended is closed when the process has ended.
func (c *Child) Ended() <-chan struct{} { return c.ended }

// Pid is the process's number.
func (c *Child) Pid() int { return c.cmd.Process.Pid }

// Recorded says that Dump.WorkingSet was written.
func (c *Child) Recorded() bool { return c.recorded.Load() }

// Request hands a payload, which is JSON, to the function. It returns its
// answer and how long the guest took. The error is a *guest.AppError if the
// child can take another request; after any other it is to be closed.
func (c *Child) Request(ctx context.Context, payload []byte) ([]byte, time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return nil, 0, errors.New("the VM has failed before")
	}
	stop := context.AfterFunc(ctx, c.kill)
	m, err := c.call(message{Kind: kindRequest, Payload: payload}, c.limit)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err == nil && m.Recorded {
		c.recorded.Store(true)
	}
	if err == nil && m.Kind == kindAppError {
		return nil, m.Took, &guest.AppError{Text: m.Error}
	}
	if err == nil && m.Kind != kindResponse {
		err = fmt.Errorf("firerunner says %.40q to a request", m.Kind)
	}
	if err != nil {
		c.broken = true
		return nil, 0, err
	}
	return m.Payload, m.Took, nil
}

// call sends a message and waits for the answer. A child that does not answer
// in time is killed.
func (c *Child) call(m message, limit time.Duration) (message, error) {
	t := time.AfterFunc(limit, c.kill)
	defer t.Stop()
	err := send(c.in, m)
	if errors.Is(err, frame.ErrTooLarge) { // nothing was written
		return message{Kind: kindAppError, Error: err.Error()}, nil
	}
	if err == nil {
		m, err = receive(c.out)
	} else if last, rerr := receive(c.out); rerr == nil { // why it has ended
		m, err = last, nil
	}
	switch {
	case err != nil:
		return m, fmt.Errorf("firerunner has ended: %w", err)
	case m.Kind == kindFailed:
		return m, errors.New(m.Error)
	}
	return m, nil
}

// Close ends the machine and the process, and frees all that they held. It is
// idempotent.
func (c *Child) Close() error {
	c.close.Do(func() {
		if c.in != nil {
			_ = c.in.Close() // this is how it is told
		}
		t := time.AfterFunc(stopTimeout+5*time.Second, c.kill)
		<-c.ended
		t.Stop()
		if c.out != nil {
			_ = c.out.Close()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*stopTimeout)
		defer cancel()
		c.err = c.place.Release(ctx)
	})
	return c.err
}
