package microvm

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

// A connect that is under way ends when a snapshot is made, or the machine has
// ended, and whoever waits for it waits for what comes after.
func TestLinkHold(t *testing.T) {
	trying := make(chan struct{})
	l := newLink(func(ctx context.Context) (*agent.Client, error) {
		trying <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	got := make(chan error)
	go func() {
		_, err := l.get(t.Context())
		got <- err
	}()
	<-trying
	l.hold()
	l.release() // the same one tries again
	<-trying
	l.hold()
	select {
	case err := <-got:
		t.Fatalf("gave up: %v", err)
	default:
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("under a hold: %v", err)
	}
	l.release()
	<-trying
	l.close()
	if err := <-got; !errors.Is(err, errLinkClosed) {
		t.Errorf("error is %v", err)
	}
}

// An agent that gives up on a connection, as one on a busy host may, is tried
// again.
func TestConnectAgain(t *testing.T) {
	testenv.Root(t)
	id := sandbox.NewID()
	ip := net.IPv4(127, 77, id[0], id[1])
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", (&net.TCPAddr{IP: ip, Port: agent.Port}).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for refused := 0; ; refused++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			if _, err := io.ReadFull(c, make([]byte, len(agent.Token{})+1)); err != nil || refused < 3 {
				_ = c.Close()
				continue
			}
			_, _ = c.Write([]byte{'k'})
		}
	}()
	b := New("test", &sandbox.Spec{ID: id, Link: sandbox.Link{Address: net.IPNet{IP: ip}, DialNS: "/proc/self/ns/net"}})
	b.link.release()
	defer b.link.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := b.link.get(ctx); err != nil {
		t.Error(err)
	}
}
