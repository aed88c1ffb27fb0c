package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// paging is the page-fault handler of one machine.
type paging struct {
	listener *net.UnixListener
	set      *pager.WorkingSet // nil: none
	record   bool
	done     chan struct{} // closed when nothing is served any more; nil: it never began
	freed    bool          // by end

	mu     sync.Mutex
	server *pager.Server // nil until the monitor has come
	ended  bool          // the recording was taken
}

// newPaging prepares the service of a machine's memory: the monitor finds its
// socket, and the working set is read from disk while the monitor starts.
func (b *box) newPaging(r sandbox.Restore) (_ *paging, err error) {
	p := &paging{record: r.Record}
	// Of what was installed ahead, nothing shows if it was touched.
	if r.Image.WorkingSet != "" && !r.Record {
		if p.set, err = pager.OpenWorkingSet(r.Image.WorkingSet, false); err != nil {
			return nil, err
		}
		if err = p.set.Advise(); err != nil {
			return nil, errors.Join(err, p.set.Close())
		}
	}
	if p.listener, err = b.jail.listen(); err != nil {
		return nil, errors.Join(err, p.closeSet())
	}
	return p, nil
}

func (p *paging) closeSet() error {
	if p.set == nil {
		return nil
	}
	return p.set.Close()
}

// servePages waits for the monitor to hand its memory over, and serves it until
// it ends. If that fails, the machine is killed: it must not go on with other
// memory than its own.
func (b *box) servePages(ctx context.Context) {
	p := b.paging
	p.done = make(chan struct{})
	// Not ctx: it serves for as long as the machine runs.
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(p.done)
		defer cancel()
		if err := b.serve(serving, p); err != nil {
			b.d.log.Error("firecracker: page faults are not answered any more, the machine is killed", "sandbox", b.Spec.ID, "error", err)
			b.vm.Fail(err)
		}
		_ = p.closeSet()
	}()
	go func() {
		<-b.vm.Dead()
		_ = p.listener.Close() // a monitor that never came
	}()
}

// end frees what the service of a machine that has ended holds. It may be
// called again.
func (p *paging) end(ctx context.Context) error {
	switch {
	case p.freed:
		return nil
	case p.done == nil:
		p.freed = true
		return errors.Join(p.listener.Close(), p.closeSet())
	}
	select {
	case <-p.done:
		p.freed = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *box) serve(ctx context.Context, p *paging) error {
	defer p.listener.Close() //nolint:errcheck // closed by then, or not
	conn, err := b.accept(p)
	if conn == nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // both ends are done with it
	limited, cancel := context.WithTimeout(ctx, handshakeTimeout)
	h, err := pager.ReceiveHandshake(limited, conn)
	cancel()
	if err != nil {
		return err
	}
	defer unix.Close(h.Process) //nolint:errcheck // a pidfd
	s, err := pager.New(pager.Config{
		UFFD: h.UFFD, Regions: h.Regions, Process: h.Process, Source: b.image.Source, WorkingSet: p.set, Record: p.record,
		ZeroAround: true, // Firecracker has asked for anonymous memory
		Kill: func(context.Context) error {
			return ignoreGone(unix.PidfdSendSignal(h.Process, unix.SIGKILL, nil, 0))
		},
		Log: b.d.log,
	})
	if err != nil {
		// The memory must not be let go while the machine may run.
		b.vm.Fail(err)
		<-b.vm.Dead()
		return errors.Join(err, h.UFFD.Close())
	}
	p.mu.Lock()
	p.server = s
	p.mu.Unlock()
	return s.Serve(ctx)
}

// handshakeTimeout bounds the time from the monitor's connection to its memory.
const handshakeTimeout = 30 * time.Second

// accept waits for the monitor to connect. It returns nothing if the monitor
// ended before.
func (b *box) accept(p *paging) (*net.UnixConn, error) {
	for {
		conn, err := p.listener.AcceptUnix()
		if err != nil {
			select {
			case <-b.vm.Dead():
				return nil, nil
			default:
				return nil, fmt.Errorf("wait for the monitor's memory: %w", err)
			}
		}
		if b.isMonitor(conn) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// isMonitor says if the monitor is at a connection's other end.
func (b *box) isMonitor(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return false
	}
	return int(cred.Pid) == b.vm.Pid()
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

var _ sandbox.Drifter = (*box)(nil)

// Drift implements sandbox.Drifter for machines that are paged.
func (b *box) Drift() (pager.Drift, bool) {
	p := b.paging
	if p == nil || p.set == nil {
		return pager.Drift{}, false
	}
	p.mu.Lock()
	s := p.server
	p.mu.Unlock()
	if s == nil {
		return pager.Drift{}, false
	}
	return s.Drift(), true
}

// recordedBox is a box that was restored to be recorded.
type recordedBox struct{ *box }

var _ sandbox.Recorder = (*recordedBox)(nil)

// Recorded writes what the machine has touched until now.
func (b *recordedBox) Recorded(ctx context.Context, path string) error {
	p := b.paging
	p.mu.Lock()
	s, ended := p.server, p.ended
	p.ended = true
	p.mu.Unlock()
	if s == nil || ended {
		return fmt.Errorf("firecracker: sandbox %s: there is no recording, or it has ended", b.Spec.ID)
	}
	if err := pager.WriteWorkingSet(ctx, path, s.StopRecording(), b.image.Source); err != nil {
		return fmt.Errorf("firecracker: sandbox %s: %w", b.Spec.ID, err)
	}
	return nil
}
