package guest

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// process is one the host started: the function's, or one beside it.
type process struct {
	proc     *os.Process
	out, err *stream

	inMu sync.Mutex
	in   *os.File // nil: none, or closed

	ended chan struct{}
	exit  *agentpb.WaitResponse // valid after ended
}

// watch waits for the process. It is its only waiter.
func (p *process) watch(cg *cgroup, kills int64) {
	defer close(p.ended)
	p.exit = &agentpb.WaitResponse{Ended: true}
	st, err := p.proc.Wait()
	p.exit.AtUnixNanos = time.Now().UnixNano()
	if err != nil {
		p.exit.Code = 255
		return
	}
	ws := st.Sys().(syscall.WaitStatus)
	if !ws.Signaled() {
		p.exit.Code = uint32(ws.ExitStatus())
		return
	}
	p.exit.Signal = uint32(ws.Signal())
	p.exit.Code = 128 + p.exit.Signal
	if ws.Signal() == unix.SIGKILL {
		p.exit.Stalled = cg.stalled.Load()
		p.exit.OomKilled = p.exit.Stalled || cg.oomKills() > kills
	}
}

func (p *process) wait(ctx context.Context) *agentpb.WaitResponse {
	select {
	case <-p.ended:
		return p.exit
	case <-ctx.Done():
		return &agentpb.WaitResponse{}
	}
}

func (p *process) stream(s agentpb.Stream) *stream {
	if s == agentpb.Stream_STREAM_STDERR {
		return p.err
	}
	return p.out
}

// write writes until ctx ends, or the process does, or its input is closed.
func (p *process) write(ctx context.Context, data []byte, closeAfter bool) (int, error) {
	p.inMu.Lock()
	in := p.in
	p.inMu.Unlock()
	if in == nil {
		return 0, os.ErrClosed
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = in.SetWriteDeadline(deadline)
	}
	n, err := in.Write(data)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, nil
	}
	if err == nil && closeAfter {
		p.closeInput()
	}
	return n, err
}

func (p *process) closeInput() {
	p.inMu.Lock()
	in := p.in
	p.in = nil
	p.inMu.Unlock()
	if in != nil {
		_ = in.Close()
	}
}

// signal sends a signal to a process that has not been waited for.
func (p *process) signal(s syscall.Signal) error { return p.proc.Signal(s) }
