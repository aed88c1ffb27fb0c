package microvm

import (
	"context"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
	"github.com/skep-dev/skep/internal/sandbox"
)

const (
	// drainTimeout is how long a function's last output may take to be
	// copied, once the function has ended.
	drainTimeout = 10 * time.Second
	// lastWords is how long connections may still be read when the function
	// has ended: its answers may be on the way to their readers.
	lastWords = time.Second
)

// Wait waits for the function's end.
func (b *Box) Wait(ctx context.Context) (sandbox.Exit, error) {
	b.mu.Lock()
	started := b.started
	b.mu.Unlock()
	if !started {
		return sandbox.Exit{}, b.wrap(sandbox.ErrNotRunning)
	}
	select {
	case <-b.ended:
		return b.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// watch follows a started function to its end.
func (b *Box) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.settle()
	var copies sync.WaitGroup
	for s, w := range map[agentpb.Stream]io.Writer{
		agentpb.Stream_STREAM_STDOUT: b.Spec.Stdout, agentpb.Stream_STREAM_STDERR: b.Spec.Stderr,
	} {
		copies.Go(func() { b.copyOutput(ctx, s, w) })
	}
	var r *agentpb.WaitResponse
	err := b.link.do(ctx, func(c *agent.Client) (err error) {
		r, err = c.Wait(ctx, function)
		return err
	})
	if err != nil {
		b.end(b.lost(err))
		return
	}
	drained := make(chan struct{})
	go func() { copies.Wait(); close(drained) }()
	t := time.NewTimer(drainTimeout)
	defer t.Stop()
	select {
	case <-drained:
	case <-t.C:
	case <-b.Machine.Dead():
	}
	b.end(exit(r))
	b.Machine.Kill()
}

// A machine listens to its function later while others wait to come back to
// life: that takes a third as long as a restore, where the processor is emulated.
const (
	settleMost = 5 * time.Second
	settleLook = 100 * time.Millisecond
)

// settle leaves a restored machine to its first request, and the processor to
// those who come back to life.
func (b *Box) settle() {
	if b.Origin == nil || b.Origin.Settle <= 0 {
		return
	}
	end := time.Now().Add(settleMost)
	t := time.NewTimer(b.Origin.Settle)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-b.Machine.Dead():
			return
		}
		if p := b.Origin.Places; p == nil || len(p) < cap(p) || time.Now().After(end) {
			return
		}
		t.Reset(settleLook)
	}
}

// copyOutput copies the function's output to its end, over as many connections
// as it takes.
func (b *Box) copyOutput(ctx context.Context, s agentpb.Stream, w io.Writer) {
	offset := b.marks.Stdout
	if s == agentpb.Stream_STREAM_STDERR {
		offset = b.marks.Stderr
	}
	to := &forgiving{w: w}
	_ = b.link.do(ctx, func(c *agent.Client) (err error) {
		offset, err = c.CopyOutput(ctx, function, s, offset, to)
		return err
	})
}

// exit makes sense of what the guest says.
func exit(r *agentpb.WaitResponse) sandbox.Exit {
	e := sandbox.Exit{Code: int(r.Code & 0xff), OOMKilled: r.OomKilled, At: time.Now()}
	if r.Signal > 0 && r.Signal <= 64 {
		e.Signal = int(r.Signal)
		e.Code = 128 + e.Signal
	}
	switch {
	case r.Stalled:
		e.Reason = sandbox.ReasonStalled
	case e.OOMKilled:
		e.Reason = "out of memory"
	}
	return e
}

// lost is the end of a function whose machine is gone.
func (b *Box) lost(err error) sandbox.Exit {
	e := sandbox.Exit{Code: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL), At: time.Now()}
	b.mu.Lock()
	destroyed := b.destroyed
	b.mu.Unlock()
	if destroyed {
		e.Reason = "destroyed"
		return e
	}
	// Either the machine is dying, or its agent is broken: both end here.
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-b.Machine.Dead():
		e.Reason = b.Machine.Explain().Error()
	case <-t.C:
		e.Reason = err.Error()
		b.Machine.Kill()
	}
	if n, err := b.Group.OOMKills(); err == nil && n > 0 || b.Machine.OutOfMemory() {
		e.OOMKilled = true
	}
	return e
}

// end is called once, by Start or by watch.
func (b *Box) end(e sandbox.Exit) {
	b.exit = e
	close(b.ended)
	time.AfterFunc(lastWords, b.conns.close)
}

// forgiving goes on when its writer fails: a function must not stop because
// nobody reads its output.
type forgiving struct {
	w      io.Writer
	failed bool
}

func (f *forgiving) Write(p []byte) (int, error) {
	if !f.failed {
		_, err := f.w.Write(p)
		f.failed = err != nil
	}
	return len(p), nil
}
