package microvm

import (
	"context"
	"errors"
	"sync"

	"github.com/skep-dev/skep/internal/agent"
)

// link is the connection with a guest's agent. It is another one after each
// snapshot that is made of the guest: in between, who wants it waits.
type link struct {
	mu      sync.Mutex
	client  *agent.Client // nil: there is none at the moment
	changed chan struct{} // closed and replaced at every change
	closed  bool
}

var errLinkClosed = errors.New("the connection with the guest's agent is closed")

func newLink() *link { return &link{changed: make(chan struct{})} }

// set replaces the connection; nil makes everybody wait for the next.
func (l *link) set(c *agent.Client) {
	l.mu.Lock()
	old := l.client
	l.client = c
	closed := l.closed
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	if closed && c != nil {
		_ = c.Close()
	}
}

// close ends the connection, and the hope for another.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.set(nil)
}

// get waits for a connection.
func (l *link) get(ctx context.Context) (*agent.Client, error) {
	for {
		l.mu.Lock()
		c, changed, closed := l.client, l.changed, l.closed
		l.mu.Unlock()
		switch {
		case closed:
			return nil, errLinkClosed
		case c != nil:
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// do has f call the agent, again when its connection was replaced meanwhile:
// so f must be fit to go on where it broke off.
func (l *link) do(ctx context.Context, f func(*agent.Client) error) error {
	for {
		c, err := l.get(ctx)
		if err != nil {
			return err
		}
		if err = f(c); err == nil {
			return nil
		}
		l.mu.Lock()
		same := l.client == c
		l.mu.Unlock()
		if same || ctx.Err() != nil {
			return err
		}
	}
}
