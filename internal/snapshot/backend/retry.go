package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// RetryOptions bound how a failing call is repeated. The zero value means the
// defaults that the fields name.
type RetryOptions struct {
	Attempts int           // calls in all, the first among them; default 5
	Min      time.Duration // pause before the second attempt; default 50 ms
	Max      time.Duration // longest pause; default 5 s
	// OnRetry, when set, hears of each failure that is tried again.
	OnRetry func(op, name string, attempt int, err error)
}

// Retry makes passing failures of b invisible: it repeats a call up to
// Attempts times with exponential pauses and full jitter, never beyond ctx. A
// reader that Get returned and that fails on the way is opened again where it
// stopped.
func Retry(b Backend, opts RetryOptions) Backend {
	if opts.Attempts <= 0 {
		opts.Attempts = 5
	}
	if opts.Min <= 0 {
		opts.Min = 50 * time.Millisecond
	}
	if opts.Max < opts.Min {
		opts.Max = max(5*time.Second, opts.Min)
	}
	return &retrying{Backend: b, opts: opts}
}

type retrying struct {
	Backend
	opts RetryOptions
}

// giveUp marks errors that do must not try again although they look passing.
type giveUp struct{ error }

func (g giveUp) Unwrap() error { return g.error }

func (r *retrying) do(ctx context.Context, op, name string, call func(attempt int) error) error {
	pause := r.opts.Min
	for attempt := 1; ; attempt++ {
		err := call(attempt)
		if err == nil {
			return nil
		}
		if g := (giveUp{}); errors.As(err, &g) {
			return g.error
		}
		if Permanent(err) {
			return err
		}
		if attempt >= r.opts.Attempts {
			return fmt.Errorf("%s %s failed %d times, giving up: %w", op, name, attempt, err)
		}
		if r.opts.OnRetry != nil {
			r.opts.OnRetry(op, name, attempt, err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s %s: %w, after: %w", op, name, context.Cause(ctx), err)
		}
		pause = min(2*pause, r.opts.Max)
	}
}

// Put implements Backend. Only a reader that can seek is sent again.
func (r *retrying) Put(ctx context.Context, name string, src io.Reader, size int64) error {
	seeker, _ := src.(io.Seeker)
	var start int64
	if seeker != nil {
		var err error
		if start, err = seeker.Seek(0, io.SeekCurrent); err != nil {
			seeker = nil
		}
	}
	return r.do(ctx, "putting", name, func(attempt int) error {
		if attempt > 1 {
			if _, err := seeker.Seek(start, io.SeekStart); err != nil {
				return giveUp{fmt.Errorf("rewinding the source of %s: %w", name, err)}
			}
		}
		err := r.Backend.Put(ctx, name, src, size)
		if attempt > 1 && errors.Is(err, ErrExist) {
			// An earlier attempt may have succeeded and its answer got lost.
			if info, serr := r.Backend.Stat(ctx, name); serr == nil && info.Size == size {
				return nil
			}
		}
		if err != nil && seeker == nil && !Permanent(err) {
			return giveUp{err}
		}
		return err
	})
}

// Get implements Backend.
func (r *retrying) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	var rc io.ReadCloser
	err := r.do(ctx, "getting", name, func(int) (err error) {
		rc, err = r.Backend.Get(ctx, name, offset, length)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &resuming{r: r, ctx: ctx, name: name, rc: rc, offset: offset, length: length, left: r.opts.Attempts - 1}, nil
}

// Stat implements Backend.
func (r *retrying) Stat(ctx context.Context, name string) (info Info, err error) {
	err = r.do(ctx, "looking up", name, func(int) (err error) {
		info, err = r.Backend.Stat(ctx, name)
		return err
	})
	return info, err
}

// List implements Backend. What fn has seen is not shown to it twice, and its
// own errors are final.
func (r *retrying) List(ctx context.Context, prefix string, fn func(Info) error) error {
	seen := map[string]bool{}
	return r.do(ctx, "listing", prefix, func(int) error {
		return r.Backend.List(ctx, prefix, func(info Info) error {
			if seen[info.Name] {
				return nil
			}
			seen[info.Name] = true
			if err := fn(info); err != nil {
				return giveUp{err}
			}
			return nil
		})
	})
}

// Delete implements Backend.
func (r *retrying) Delete(ctx context.Context, name string) error {
	return r.do(ctx, "deleting", name, func(int) error { return r.Backend.Delete(ctx, name) })
}

// resuming is a reader that opens its object again where reading failed.
type resuming struct {
	r              *retrying
	ctx            context.Context
	name           string
	rc             io.ReadCloser
	offset, length int64
	left           int // reopenings that remain
}

func (s *resuming) Read(p []byte) (int, error) {
	for {
		n, err := s.rc.Read(p)
		s.offset += int64(n)
		if s.length > 0 {
			s.length -= int64(n)
		}
		// A short object does not grow: it is damaged, not unlucky. Yet a cut
		// connection looks the same, so one of the attempts goes into asking.
		if err == nil || err == io.EOF || Permanent(err) || s.left == 0 {
			return n, err
		}
		s.left--
		if n > 0 {
			return n, s.reopen()
		}
		if err := s.reopen(); err != nil {
			return 0, err
		}
	}
}

func (s *resuming) reopen() error {
	s.rc.Close()
	s.rc = io.NopCloser(eofReader{}) // stays valid when opening fails
	return s.r.do(s.ctx, "getting again", s.name, func(int) error {
		rc, err := s.r.Backend.Get(s.ctx, s.name, s.offset, s.length)
		if err == nil {
			s.rc = rc
		}
		return err
	})
}

func (s *resuming) Close() error { return s.rc.Close() }

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
