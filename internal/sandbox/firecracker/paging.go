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
	done     chan struct{}     // closed when nothing is served any more

	mu     sync.Mutex
	server *pager.Server // nil until the monitor has come
	ended  bool          // the recording was taken
}

// servePages waits for the monitor to hand its memory over, and serves it until
// it ends. If that fails, the machine is killed: it must not go on with other
// memory than its own.
func (b *box) servePages(ctx context.Context, r sandbox.Restore) (_ *paging, err error) {
	p := &paging{done: make(chan struct{})}
	defer func() {
		if err != nil && p.set != nil {
			err = errors.Join(err, p.set.Close())
		}
	}()
	if r.Image.WorkingSet != "" {
		if p.set, err = pager.OpenWorkingSet(r.Image.WorkingSet, false); err != nil {
			return nil, err
		}
	}
	if p.listener, err = b.jail.listen(); err != nil {
		return nil, err
	}
	// Not ctx: it serves for as long as the machine runs.
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(p.done)
		defer cancel()
		if err := b.serve(serving, p, r.Record); err != nil {
			b.d.log.Error("firecracker: page faults are not answered any more, the machine is killed", "sandbox", b.Spec.ID, "error", err)
			b.vm.Fail(err)
		}
		if p.set != nil {
			_ = p.set.Close()
		}
	}()
	go func() {
		<-b.vm.Dead()
		_ = p.listener.Close() // a monitor that never came
	}()
	return p, nil
}

func (b *box) serve(ctx context.Context, p *paging, record bool) error {
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
		UFFD: h.UFFD, Regions: h.Regions, Process: h.Process, Source: b.image.Source, WorkingSet: p.set, Record: record,
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
