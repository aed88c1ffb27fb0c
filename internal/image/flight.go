package image

import (
	"context"
	"errors"
	"sync"
)

// flights lets concurrent calls for the same key share one execution. It
// runs on as long as one caller waits, whichever called first.
type flights[T any] struct {
	mu    sync.Mutex
	calls map[string]*flight[T]
	wg    sync.WaitGroup
}

type flight[T any] struct {
	done    chan struct{}
	val     T
	err     error
	waiters int // guarded by flights.mu
	cancel  context.CancelCauseFunc

	watchMu sync.Mutex
	watch   map[*func(Progress)]struct{}
}

var errNobodyWaits = errors.New("every caller gave up")

// do returns fn's result, or ctx's error if that is done before. No call of
// progress is under way once do has returned. stop ends all executions.
func (f *flights[T]) do(ctx, stop context.Context, key string, progress func(Progress), fn func(context.Context, func(Progress)) (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, context.Cause(ctx)
	}
	f.mu.Lock()
	if stop.Err() != nil {
		f.mu.Unlock()
		return zero, ErrClosed
	}
	c := f.calls[key]
	if c == nil {
		c = f.start(ctx, stop, key, fn)
	}
	c.waiters++
	f.mu.Unlock()

	if progress != nil {
		c.watchMu.Lock()
		c.watch[&progress] = struct{}{}
		c.watchMu.Unlock()
	}
	defer func() {
		c.watchMu.Lock()
		delete(c.watch, &progress)
		c.watchMu.Unlock()
	}()
	select {
	case <-c.done:
		return c.val, c.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	if c.waiters--; c.waiters == 0 {
		c.cancel(errNobodyWaits)
		if f.calls[key] == c { // who comes now starts afresh
			delete(f.calls, key)
		}
	}
	f.mu.Unlock()
	return zero, context.Cause(ctx)
}

func (f *flights[T]) start(ctx, stop context.Context, key string, fn func(context.Context, func(Progress)) (T, error)) *flight[T] {
	run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(stop, func() { cancel(ErrClosed) })
	c := &flight[T]{done: make(chan struct{}), cancel: cancel, watch: make(map[*func(Progress)]struct{})}
	if f.calls == nil {
		f.calls = make(map[string]*flight[T])
	}
	f.calls[key] = c
	f.wg.Go(func() {
		defer cancel(nil)
		defer unhook()
		c.val, c.err = fn(run, c.report)
		f.mu.Lock()
		if f.calls[key] == c {
			delete(f.calls, key)
		}
		f.mu.Unlock()
		close(c.done)
	})
	return c
}

// wait waits for all executions to end, after stop.
func (f *flights[T]) wait() {
	f.mu.Lock()   // whoever is starting one has started it now
	f.mu.Unlock() //nolint:staticcheck // a barrier
	f.wg.Wait()
}

func (c *flight[T]) report(p Progress) {
	c.watchMu.Lock()
	defer c.watchMu.Unlock()
	for w := range c.watch {
		(*w)(p)
	}
}
