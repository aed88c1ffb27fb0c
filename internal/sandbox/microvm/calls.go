package microvm

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Signal sends a signal to the function's process.
func (b *Box) Signal(ctx context.Context, sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return b.wrap(fmt.Errorf("%v is not a Linux signal", sig))
	}
	return b.call(ctx, func(c *agent.Client) error { return c.Signal(ctx, function, uint32(n)) })
}

// call has f call the agent of a function that runs.
func (b *Box) call(ctx context.Context, f func(*agent.Client) error) error {
	if err := b.Running(); err != nil {
		return err
	}
	c, err := b.link.get(ctx)
	if err == nil {
		err = f(c)
	}
	return b.failed(err)
}

// WaitPort learns from inside that a port is open.
func (b *Box) WaitPort(ctx context.Context, port int) error {
	if err := b.Running(); err != nil {
		return err
	}
	return b.failed(b.link.do(ctx, func(c *agent.Client) error { return c.WaitPort(ctx, uint16(port)) }))
}

// Dial connects to a port of the guest.
func (b *Box) Dial(ctx context.Context, port int) (net.Conn, error) {
	if err := b.Running(); err != nil {
		return nil, err
	}
	ctx, cancel := until(ctx, b.ended)
	defer cancel()
	c, err := b.dialer("tcp", port)(ctx)
	if err != nil {
		return nil, b.failed(err)
	}
	return b.conns.add(c)
}

// dialer dials a port of the guest.
func (b *Box) dialer(network string, port int) func(context.Context) (net.Conn, error) {
	addr := net.JoinHostPort(b.Spec.Link.Address.IP.String(), fmt.Sprint(port))
	return func(ctx context.Context) (net.Conn, error) {
		return netns.Dial(ctx, b.Spec.Link.DialNS, network, addr)
	}
}

// Stats measures the whole machine on the host.
func (b *Box) Stats(context.Context) (sandbox.Stats, error) {
	s, err := b.Group.Stats()
	if err != nil {
		return sandbox.Stats{}, b.failed(err)
	}
	return sandbox.Stats{MemoryBytes: s.MemoryBytes, CPUTime: s.CPUTime}, nil
}
