package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

// Worker is a VM that takes requests.
type Worker interface {
	VM
	// Request hands a payload to the function. After an error that is no
	// *guest.AppError the worker is of no use.
	Request(ctx context.Context, payload []byte) (reply []byte, took time.Duration, err error)
}

// Controller answers requests with the functions of a pool.
type Controller struct {
	pool *Pool[Worker]
	log  *slog.Logger

	requests, failed, cold atomic.Int64
}

// New makes a controller; it does not own the pool.
func New(pool *Pool[Worker], log *slog.Logger) *Controller {
	return &Controller{pool: pool, log: log}
}

// Totals counts what was asked for since the start.
type Totals struct{ Requests, Failed, ColdStarts int64 }

// Totals returns the counts.
func (c *Controller) Totals() Totals {
	return Totals{c.requests.Load(), c.failed.Load(), c.cold.Load()}
}

// Invoke has a function answer a payload, which is JSON, as the answer is. The
// error is one of this package's.
func (c *Controller) Invoke(ctx context.Context, function string, payload []byte) (reply []byte, err error) {
	c.requests.Add(1)
	defer func() {
		if err != nil {
			c.failed.Add(1)
			c.log.Warn("request failed", "function", fmt.Sprintf("%.100s", function), "error", err)
		}
	}()
	if len(payload) == 0 {
		payload = []byte("null")
	}
	if !json.Valid(payload) {
		return nil, fmt.Errorf("%w: payload: it is not JSON", ErrRequest)
	}
	begin := time.Now()
	vm, cold, err := c.pool.Get(ctx, function)
	if err != nil {
		return nil, err
	}
	if cold {
		c.cold.Add(1)
	}
	got := time.Since(begin)
	reply, took, err := vm.Request(ctx, payload)
	var app *guest.AppError
	if err == nil || errors.As(err, &app) {
		c.pool.Put(function, vm)
	} else {
		c.pool.Drop(function, vm)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	c.log.Info("request returned", "function", function, "cold", cold, "vm", got, "guest", took, "took", time.Since(begin))
	return reply, nil
}
