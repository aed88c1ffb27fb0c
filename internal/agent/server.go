package agent

import (
	"context"
	"errors"
	"net"
	"path"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// Guest does what the host asks for. The Server has checked the requests'
// bounds. Calls may come concurrently and in any order.
type Guest interface {
	Ping() *agentpb.PingResponse
	Configure(ctx context.Context, r *agentpb.ConfigureRequest) error
	Start(ctx context.Context, p *agentpb.Process) error
	Exec(ctx context.Context, r *agentpb.ExecRequest) (process uint32, err error)
	// Read waits for output at offset until ctx ends, which is no error.
	Read(ctx context.Context, process uint32, stream agentpb.Stream, offset uint64) (data []byte, end bool, err error)
	// Write writes until ctx ends, which is no error, and closes the input
	// if all was written.
	Write(ctx context.Context, process uint32, data []byte, closeAfter bool) (written int, err error)
	Signal(process uint32, signal uint32) error
	// Wait waits for a process until ctx ends, which is no error.
	Wait(ctx context.Context, process uint32) (*agentpb.WaitResponse, error)
	Release(process uint32) error
	// WaitPort waits for a listener until ctx ends, which is no error.
	WaitPort(ctx context.Context, port uint16) (open bool, err error)
	// Mount mounts a disk in the function's file system.
	Mount(disk uint32, target string) error
	// Suspend is called before a snapshot is made.
	Suspend()
	// Freeze stops the function, and says how many bytes of output it has
	// written so far.
	Freeze() (Marks, error)
	// Thaw has a function that Freeze has stopped go on.
	Thaw() error
	// Restored gives a guest that has been restored its identity, and thaws the
	// function. It is called on a thread of its own.
	Restored(r *Restored) error
	// SetClock sets the wall clock, after Restored: it was told late.
	SetClock(t time.Time) error
}

// Serve answers the host's calls on a listener until that fails or ctx ends.
// Only connections from the address host are considered.
func Serve(ctx context.Context, l net.Listener, host net.IP, g Guest) error {
	srv, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	agentpb.RegisterAgentService(srv, &service{g})
	gate := newGate(l, host, g)
	d, err := listenRestored(l.Addr(), gate)
	if err != nil {
		return errors.Join(err, gate.Close())
	}
	defer d.close()
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ctx, gate); !errors.Is(err, ttrpc.ErrServerClosed) {
		return err
	}
	return nil
}

// service checks requests and hands them to the guest.
type service struct{ g Guest }

var _ agentpb.AgentService = (*service)(nil)

// failed makes an error that the host gets as it is.
func failed(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.FailedPrecondition, err.Error())
}

func (s *service) Ping(context.Context, *agentpb.PingRequest) (*agentpb.PingResponse, error) {
	return s.g.Ping(), nil
}

func (s *service) Configure(ctx context.Context, r *agentpb.ConfigureRequest) (*agentpb.ConfigureResponse, error) {
	if err := checkConfigure(r); err != nil {
		return nil, err
	}
	return &agentpb.ConfigureResponse{}, failed(s.g.Configure(ctx, r))
}

func (s *service) Start(ctx context.Context, r *agentpb.StartRequest) (*agentpb.StartResponse, error) {
	if err := checkProcess(r.Process); err != nil {
		return nil, err
	}
	return &agentpb.StartResponse{}, failed(s.g.Start(ctx, r.Process))
}

func (s *service) Exec(ctx context.Context, r *agentpb.ExecRequest) (*agentpb.ExecResponse, error) {
	if err := checkProcess(r.Process); err != nil {
		return nil, err
	}
	id, err := s.g.Exec(ctx, r)
	return &agentpb.ExecResponse{Process: id}, failed(err)
}

func (s *service) Read(ctx context.Context, r *agentpb.ReadRequest) (*agentpb.ReadResponse, error) {
	if r.Stream != agentpb.Stream_STREAM_STDOUT && r.Stream != agentpb.Stream_STREAM_STDERR {
		return nil, invalid("stream", "%d is neither stdout nor stderr", r.Stream)
	}
	ctx, cancel := context.WithTimeout(ctx, longPoll)
	defer cancel()
	data, end, err := s.g.Read(ctx, r.Process, r.Stream, r.Offset)
	return &agentpb.ReadResponse{Data: data, End: end}, failed(err)
}

func (s *service) Write(ctx context.Context, r *agentpb.WriteRequest) (*agentpb.WriteResponse, error) {
	if len(r.Data) > MaxChunk {
		return nil, invalid("data", "%d bytes, the limit is %d", len(r.Data), MaxChunk)
	}
	ctx, cancel := context.WithTimeout(ctx, longPoll)
	defer cancel()
	n, err := s.g.Write(ctx, r.Process, r.Data, r.Close)
	return &agentpb.WriteResponse{Written: uint32(n)}, failed(err)
}

func (s *service) Signal(_ context.Context, r *agentpb.SignalRequest) (*agentpb.SignalResponse, error) {
	if r.Signal == 0 || r.Signal > maxSignal {
		return nil, invalid("signal", "%d is not a signal", r.Signal)
	}
	return &agentpb.SignalResponse{}, failed(s.g.Signal(r.Process, r.Signal))
}

func (s *service) Wait(ctx context.Context, r *agentpb.WaitRequest) (*agentpb.WaitResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, longPoll)
	defer cancel()
	res, err := s.g.Wait(ctx, r.Process)
	return res, failed(err)
}

func (s *service) Release(_ context.Context, r *agentpb.ReleaseRequest) (*agentpb.ReleaseResponse, error) {
	return &agentpb.ReleaseResponse{}, failed(s.g.Release(r.Process))
}

func (s *service) WaitPort(ctx context.Context, r *agentpb.WaitPortRequest) (*agentpb.WaitPortResponse, error) {
	if r.Port == 0 || r.Port > 65535 {
		return nil, invalid("port", "%d is not a TCP port", r.Port)
	}
	ctx, cancel := context.WithTimeout(ctx, longPoll)
	defer cancel()
	open, err := s.g.WaitPort(ctx, uint16(r.Port))
	return &agentpb.WaitPortResponse{Open: open}, failed(err)
}

func (s *service) Mount(_ context.Context, r *agentpb.MountRequest) (*agentpb.MountResponse, error) {
	if r.Disk >= maxDisks {
		return nil, invalid("disk", "%d, the limit is %d", r.Disk, maxDisks)
	}
	if len(r.Target) > maxPath || hasNUL(r.Target) || !path.IsAbs(r.Target) {
		return nil, invalid("target", "not an absolute path of at most %d bytes", maxPath)
	}
	return &agentpb.MountResponse{}, failed(s.g.Mount(r.Disk, r.Target))
}
