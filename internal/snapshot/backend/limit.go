package backend

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// LimitOptions bound what a backend is asked for. Zero means no limit.
type LimitOptions struct {
	Calls          int64 // at the same time; a reader from Get counts until it is closed
	BytesPerSecond int64 // of contents, both directions together
}

// Limit holds callers of b back, for as long as their ctx lasts, so that no
// more than the options say goes on.
func Limit(b Backend, opts LimitOptions) Backend {
	l := &limited{Backend: b}
	if opts.Calls > 0 {
		l.calls = semaphore.NewWeighted(opts.Calls)
	}
	if opts.BytesPerSecond > 0 {
		// A burst of a quarter second keeps the rate smooth; at least one
		// page, or nothing would ever pass.
		l.burst = int(min(max(opts.BytesPerSecond/4, 4<<10), 1<<20))
		l.rate = rate.NewLimiter(rate.Limit(opts.BytesPerSecond), l.burst)
	}
	return l
}

type limited struct {
	Backend
	calls *semaphore.Weighted
	rate  *rate.Limiter
	burst int
}

func (l *limited) enter(ctx context.Context) (leave func(), err error) {
	if l.calls == nil {
		return func() {}, nil
	}
	if err := l.calls.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("waiting for a place at the object store: %w", err)
	}
	return func() { l.calls.Release(1) }, nil
}

// Put implements Backend.
func (l *limited) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if l.rate == nil {
		return l.Backend.Put(ctx, name, r, size)
	}
	paced := &pacedReader{l: l, ctx: ctx, r: r}
	if s, ok := r.(io.Seeker); ok { // those beneath may want to send it again
		return l.Backend.Put(ctx, name, struct {
			io.Reader
			io.Seeker
		}{paced, s}, size)
	}
	return l.Backend.Put(ctx, name, paced, size)
}

// Get implements Backend.
func (l *limited) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return nil, err
	}
	rc, err := l.Backend.Get(ctx, name, offset, length)
	if err != nil {
		leave()
		return nil, err
	}
	var r io.Reader = rc
	if l.rate != nil {
		r = &pacedReader{l: l, ctx: ctx, r: rc}
	}
	return &leavingReader{Reader: r, rc: rc, leave: leave}, nil
}

// Stat implements Backend.
func (l *limited) Stat(ctx context.Context, name string) (Info, error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return Info{}, err
	}
	defer leave()
	return l.Backend.Stat(ctx, name)
}

// List implements Backend. It takes no place: fn may call the backend, and
// would wait for the place that its own List holds.
func (l *limited) List(ctx context.Context, prefix string, fn func(Info) error) error {
	return l.Backend.List(ctx, prefix, fn)
}

// Delete implements Backend.
func (l *limited) Delete(ctx context.Context, name string) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return l.Backend.Delete(ctx, name)
}

type pacedReader struct {
	l   *limited
	ctx context.Context
	r   io.Reader
}

func (p *pacedReader) Read(buf []byte) (int, error) {
	if len(buf) > p.l.burst {
		buf = buf[:p.l.burst]
	}
	n, err := p.r.Read(buf)
	if n > 0 {
		if werr := p.l.rate.WaitN(p.ctx, n); werr != nil {
			return 0, fmt.Errorf("waiting for the byte rate: %w", werr)
		}
	}
	return n, err
}

type leavingReader struct {
	io.Reader
	rc    io.Closer
	leave func()
	done  bool
}

func (r *leavingReader) Close() error {
	if !r.done {
		r.done = true
		r.leave()
	}
	return r.rc.Close()
}
