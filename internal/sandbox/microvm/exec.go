package microvm

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agentpb"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Exec runs a process beside the function's.
func (b *Box) Exec(ctx context.Context, e sandbox.Exec) (sandbox.Exit, error) {
	if err := b.Running(); err != nil {
		return sandbox.Exit{}, err
	}
	client, err := b.link.get(ctx)
	if err != nil {
		return sandbox.Exit{}, b.failed(err)
	}
	id, err := client.Exec(ctx, &agentpb.ExecRequest{
		Process: process(e.Process),
		Stdin:   e.Stdin != nil, Stdout: e.Stdout != nil, Stderr: e.Stderr != nil,
	})
	if err != nil {
		return sandbox.Exit{}, b.failed(err)
	}
	// Also what kills it when ctx has ended.
	defer func() {
		clean, cancel := CleanUp(ctx)
		defer cancel()
		_ = client.Release(clean, id) // it fails only if the machine is gone
	}()
	var copies sync.WaitGroup
	for s, f := range map[agentpb.Stream]*os.File{
		agentpb.Stream_STREAM_STDOUT: e.Stdout, agentpb.Stream_STREAM_STDERR: e.Stderr,
	} {
		if f != nil {
			copies.Go(func() { _, _ = client.CopyOutput(ctx, id, s, 0, &forgiving{w: f}) })
		}
	}
	defer feed(ctx, client, id, e.Stdin)()
	r, err := client.Wait(ctx, id)
	if err != nil {
		if ctx.Err() != nil {
			return sandbox.Exit{}, b.wrap(fmt.Errorf("exec: %w", ctx.Err()))
		}
		return sandbox.Exit{}, b.failed(err)
	}
	drained := make(chan struct{})
	go func() { copies.Wait(); close(drained) }()
	t := time.NewTimer(drainTimeout) // a child that lives on may hold its output open
	defer t.Stop()
	select {
	case <-drained:
	case <-t.C:
	case <-ctx.Done():
	}
	return exit(r), nil
}

// feed copies a file to a process's input until stop is called.
func feed(ctx context.Context, client *agent.Client, id uint32, in *os.File) (stop func()) {
	if in == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.CopyInput(ctx, id, io.Reader(in)) // the process may not want it all
	}()
	return func() {
		cancel()
		// A read that waits for more is interrupted, where the file can.
		if in.SetReadDeadline(time.Unix(1, 0)) == nil {
			<-done
			_ = in.SetReadDeadline(time.Time{})
		}
	}
}
