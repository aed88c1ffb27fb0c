package microvm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/agent"
)

// link is the connection with a guest's agent. It is made when somebody wants
// it: to a machine that was just restored not at once, as taking it in would
// hold up the first request. It ends when a snapshot is made: who wants it
// meanwhile waits.
type link struct {
	connect func(context.Context) (*agent.Client, error)

	connecting chan struct{} // lock of connecting

	mu     sync.Mutex
	client *agent.Client      // nil: there is none
	abort  context.CancelFunc // ends a connect under way; nil: there is none
	held   chan struct{}      // closed when the hold ends; nil: there is none
	closed bool
}

var errLinkClosed = errors.New("the connection with the guest's agent is closed")

func newLink(connect func(context.Context) (*agent.Client, error)) *link {
	return &link{connect: connect, connecting: make(chan struct{}, 1)}
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
	l.release()
}

// drop ends what there is of a connection.
func (l *link) drop() {
	if l.abort != nil {
		l.abort()
	}
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
	if err := Lock(ctx, l.connecting); err != nil {
		return err
	}
	defer Unlock(l.connecting)
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	if l.client != nil || l.held != nil || l.closed {
		l.mu.Unlock()
		return nil // get says what there is now
	}
	l.abort = cancel
	l.mu.Unlock()
	c, err := l.connect(trying)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.abort = nil
	switch {
	case l.closed || l.held != nil:
		if c != nil {
			_ = c.Close()
		}
		return nil
	case err != nil && trying.Err() != nil && ctx.Err() == nil:
		return nil // there was a hold, and it is over
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

// connectTimeout is how long the agent of a machine that lives may take to take
// a connection in: it gives up on each after a while, in which a busy host may
// not get to all that it needs for that.
const connectTimeout = 2 * time.Minute

// connectAgent connects to the agent. It tries again until connectTimeout is
// over, or ctx has ended, as it does with the link.
func (b *Box) connectAgent(ctx context.Context) (*agent.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		c, err := agent.Connect(ctx, b.dialer("tcp", agent.Port), b.token)
		if err == nil {
			return c, nil
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, err
		}
	}
}

// openLink makes connections to the agent possible, until the machine ends.
func (b *Box) openLink() {
	b.link.release()
	go func() {
		<-b.Machine.Dead()
		b.link.close()
	}()
}
