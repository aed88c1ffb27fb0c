package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// callTimeout bounds a call that waits for nothing, when its context has no
// earlier deadline. Generous: twenty emulated guests on two busy processors are
// slow.
const callTimeout = 2 * time.Minute

// pollSlack is what a long poll may take beyond LongPoll.
const pollSlack = 30 * time.Second

// Client is the host's end of the protocol. What it returns comes from the
// guest and is not to be trusted beyond its bounds.
type Client struct {
	c   *ttrpc.Client
	rpc agentpb.AgentService
}

// Connect dials an agent and shows it the token.
func Connect(ctx context.Context, dial func(context.Context) (net.Conn, error), t Token) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := shake(ctx, dial, t, opCalls)
	if err != nil {
		return nil, err
	}
	c := ttrpc.NewClient(conn)
	return &Client{c: c, rpc: agentpb.NewAgentClient(c)}, nil
}

// Close ends the connection; calls that are under way fail.
func (c *Client) Close() error { return c.c.Close() }

// call bounds one call and unwraps its error. A call that nobody waits for any
// more goes on for at most its limit: ttrpc cannot withdraw it, the agent ends
// it by itself, and its answer must find somebody.
func call[Q, R any](ctx context.Context, limit time.Duration, what string, f func(context.Context, Q) (R, error), q Q) (R, error) {
	type result struct {
		r   R
		err error
	}
	var none R
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("agent: %s: %w", what, err)
	}
	done := make(chan result, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		r, err := f(ctx, q)
		done <- result{r, err}
	}()
	select {
	case res := <-done:
		if res.err == nil {
			return res.r, nil
		}
		err := res.err
		if s, ok := status.FromError(err); ok {
			err = errors.New(s.Message())
		}
		return none, fmt.Errorf("agent: %s: %w", what, err)
	case <-ctx.Done():
		return none, fmt.Errorf("agent: %s: %w", what, ctx.Err())
	}
}

// Ping proves that the agent answers and speaks our version.
func (c *Client) Ping(ctx context.Context) (*agentpb.PingResponse, error) {
	r, err := call(ctx, callTimeout, "ping", c.rpc.Ping, &agentpb.PingRequest{})
	if err == nil && r.Version != Version {
		err = fmt.Errorf("agent: protocol version is %.16q, this host speaks %q: rebuild with make build", r.Version, Version)
	}
	return r, err
}

// Configure makes the guest ready for Start.
func (c *Client) Configure(ctx context.Context, r *agentpb.ConfigureRequest) error {
	_, err := call(ctx, callTimeout, "configure", c.rpc.Configure, r)
	return err
}

// Start starts the function's process. The error is the guest's reason.
func (c *Client) Start(ctx context.Context, p *agentpb.Process) error {
	_, err := call(ctx, callTimeout, "start", c.rpc.Start, &agentpb.StartRequest{Process: p})
	return err
}

// Exec starts another process and returns its number.
func (c *Client) Exec(ctx context.Context, r *agentpb.ExecRequest) (uint32, error) {
	res, err := call(ctx, callTimeout, "exec", c.rpc.Exec, r)
	if err != nil {
		return 0, err
	}
	return res.Process, nil
}

// CopyOutput copies a process's output, from an offset on, to w until it ends.
// When w is slow the process waits. The offset that it returns is where to go
// on over another connection.
func (c *Client) CopyOutput(ctx context.Context, process uint32, s agentpb.Stream, offset uint64, w io.Writer) (uint64, error) {
	for {
		r, err := call(ctx, longPoll+pollSlack, "read output", c.rpc.Read,
			&agentpb.ReadRequest{Process: process, Stream: s, Offset: offset})
		if err != nil {
			return offset, err
		}
		if len(r.Data) > MaxChunk {
			return offset, fmt.Errorf("agent: read output: %d bytes at once, the limit is %d", len(r.Data), MaxChunk)
		}
		if _, err := w.Write(r.Data); err != nil {
			return offset, fmt.Errorf("copy output: %w", err)
		}
		offset += uint64(len(r.Data))
		if r.End {
			return offset, nil
		}
		if len(r.Data) == 0 {
			if err := pace(ctx); err != nil {
				return offset, err
			}
		}
	}
}

// CopyInput copies r to a process's standard input and closes that at the end.
func (c *Client) CopyInput(ctx context.Context, process uint32, r io.Reader) error {
	buf := make([]byte, MaxChunk)
	for {
		n, rerr := r.Read(buf)
		if err := c.write(ctx, process, buf[:n], rerr != nil); err != nil {
			return err
		}
		if errors.Is(rerr, io.EOF) {
			return nil
		}
		if rerr != nil {
			return fmt.Errorf("copy input: %w", rerr)
		}
	}
}

// write waits for as long as the process does not read.
func (c *Client) write(ctx context.Context, process uint32, data []byte, closeAfter bool) error {
	for len(data) > 0 || closeAfter {
		r, err := call(ctx, longPoll+pollSlack, "write input", c.rpc.Write,
			&agentpb.WriteRequest{Process: process, Data: data, Close: closeAfter})
		if err != nil {
			return err
		}
		n := int(r.Written)
		if n > len(data) {
			return fmt.Errorf("agent: write input: %d of %d bytes were written", n, len(data))
		}
		if n == len(data) {
			return nil
		}
		data = data[n:]
		if n == 0 {
			if err := pace(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// Signal sends a signal to a process.
func (c *Client) Signal(ctx context.Context, process, signal uint32) error {
	_, err := call(ctx, callTimeout, "signal", c.rpc.Signal, &agentpb.SignalRequest{Process: process, Signal: signal})
	return err
}

// Wait waits until a process has ended.
func (c *Client) Wait(ctx context.Context, process uint32) (*agentpb.WaitResponse, error) {
	for {
		r, err := call(ctx, longPoll+pollSlack, "wait", c.rpc.Wait, &agentpb.WaitRequest{Process: process})
		if err != nil || r.Ended {
			return r, err
		}
		if err := pace(ctx); err != nil {
			return nil, err
		}
	}
}

// Mount mounts a disk, read-only, in the function's file system: disk 0 is the
// first after the root's.
func (c *Client) Mount(ctx context.Context, disk uint32, target string) error {
	_, err := call(ctx, callTimeout, "mount", c.rpc.Mount, &agentpb.MountRequest{Disk: disk, Target: target})
	return err
}

// Release frees what the agent keeps of a process that has ended, and kills
// one that has not.
func (c *Client) Release(ctx context.Context, process uint32) error {
	_, err := call(ctx, callTimeout, "release", c.rpc.Release, &agentpb.ReleaseRequest{Process: process})
	return err
}

// WaitPort waits until something in the guest listens on a TCP port.
func (c *Client) WaitPort(ctx context.Context, port uint16) error {
	for {
		r, err := call(ctx, longPoll+pollSlack, "wait for port", c.rpc.WaitPort, &agentpb.WaitPortRequest{Port: uint32(port)})
		if err != nil || r.Open {
			return err
		}
		if err := pace(ctx); err != nil {
			return err
		}
	}
}

// pace keeps a hostile guest that answers long polls at once from keeping the
// host busy.
func pace(ctx context.Context) error {
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
