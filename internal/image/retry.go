package image

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// permanentError is not worth another attempt.
type permanentError struct{ err error }

func (p permanentError) Error() string { return p.err.Error() }
func (p permanentError) Unwrap() error { return p.err }

func permanent(err error) error { return permanentError{err} }

const (
	maxFailures = 4  // attempts in a row without progress
	maxAttempts = 50 // in all
)

// retry runs f until it succeeds, fails for good, or fails too often.
// Attempts that made progress do not count as failures.
func retry(ctx context.Context, f func(context.Context) (progressed bool, err error)) error {
	failures := 0
	for attempt := 1; ; attempt++ {
		progressed, err := f(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if failures++; progressed {
			failures = 1
		}
		var p permanentError
		if errors.As(err, &p) {
			return p.err
		}
		if failures >= maxFailures || attempt >= maxAttempts || !temporary(err) {
			return err
		}
		backoff := 100 * time.Millisecond << failures
		backoff += rand.N(backoff / 2)
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// temporary says whether an error of a registry may go away by itself.
func temporary(err error) bool {
	var te *transport.Error
	if errors.As(err, &te) {
		return te.StatusCode == http.StatusTooManyRequests || te.StatusCode == http.StatusRequestTimeout || te.StatusCode >= 500
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return false
	}
	for _, final := range []error{ErrPlainHTTP, ErrNotImage, ErrCorrupt, ErrUnauthorized, ErrUnknown} {
		if errors.Is(err, final) {
			return false
		}
	}
	return true
}
