package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/skep-dev/skep/internal/agent"
)

// link is the connection with a guest's agent. It is made when somebody wants
// it: to a machine that was just restored not at once, as taking it in would
// hold up the first request. It ends when a snapshot is made: who wants it
// meanwhile waits.
type link struct {
	connect func(context.Context) (*agent.Client, error)

	connecting chan struct{} // lock of connecting
	life       context.Context
	end        context.CancelFunc // of life: close ends a connect under way

	mu     sync.Mutex
	client *agent.Client // nil: there is none
	held   chan struct{} // closed when the hold ends; nil: there is none
	closed bool
}

var errLinkClosed = errors.New("the connection with the guest's agent is closed")

func newLink(connect func(context.Context) (*agent.Client, error)) *link {
	life, end := context.WithCancel(context.Background())
	return &link{connect: connect, connecting: make(chan struct{}, 1), life: life, end: end}
}

// hold ends the connection; there is no other until release.
func (l *link) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
	if l.held == nil {
		l.held = make(chan struct{})
	}
}

// release ends the hold.
func (l *link) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held != nil {
		close(l.held)
		l.held = nil
	}
}

// close ends the connection, and the hope for another.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.drop()
	l.mu.Unlock()
	l.end()
	l.release()
}

func (l *link) drop() {
	if l.client != nil {
		_ = l.client.Close()
		l.client = nil
	}
}

// state is what get looks at.
func (l *link) state() (c *agent.Client, held chan struct{}, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.client, l.held, l.closed
}

// get returns the connection, and makes it if there is none.
func (l *link) get(ctx context.Context) (*agent.Client, error) {
	for {
		c, held, closed := l.state()
		switch {
		case closed:
			return nil, errLinkClosed
		case held != nil:
			select {
			case <-held:
			case <-ctx.Done():
				return nil, fmt.Errorf("wait for a snapshot to be made: %w", ctx.Err())
			}
		case c != nil:
			return c, nil
		default:
			if err := l.make(ctx); err != nil {
				return nil, err
			}
		}
	}
}

// make makes the connection unless there is one.
func (l *link) make(ctx context.Context) error {
	if err := lock(ctx, l.connecting); err != nil {
		return err
	}
	defer unlock(l.connecting)
	if c, held, closed := l.state(); c != nil || held != nil || closed {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	c, err := l.connect(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed || l.held != nil:
		if c != nil {
			_ = c.Close()
		}
		return nil // get says what there is now
	case err != nil:
		return err
	}
	l.client = c
	return nil
}

// do has f call the agent, again when its connection ended for a snapshot:
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
		same := l.client == c || l.closed
		l.mu.Unlock()
		if same || ctx.Err() != nil {
			return err
		}
	}
}
