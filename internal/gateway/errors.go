package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

var (
	errRevisionRemoved = errors.New("the revision was removed")
	errDraining        = errors.New("the gateway is shutting down")
	errClientGone      = errors.New("the client went away")
	errBodyTimeout     = errors.New("the request's body came too slowly")
	errTimeout         = errors.New("the request took too long")
)

type queueFullError struct{ depth int }

func (e *queueFullError) Error() string {
	return fmt.Sprintf("too many requests wait for an instance (the queue holds %d)", e.depth)
}

type queueTimeoutError struct{ after time.Duration }

func (e *queueTimeoutError) Error() string {
	return fmt.Sprintf("no instance was free within %s", e.after)
}

// startError says why no instance could be started.
type startError struct{ cause error }

func (e *startError) Error() string { return "no instance could be started: " + e.cause.Error() }
func (e *startError) Unwrap() error { return e.cause }

// dialError says that an instance could not be connected to.
type dialError struct{ cause error }

func (e *dialError) Error() string { return "the instance cannot be reached: " + e.cause.Error() }
func (e *dialError) Unwrap() error { return e.cause }

// upstreamError is an instance that broke off or spoke nonsense.
type upstreamError struct {
	doing string
	cause error
}

func (e *upstreamError) Error() string {
	return "the instance failed while the gateway was " + e.doing + ": " + e.cause.Error()
}
func (e *upstreamError) Unwrap() error { return e.cause }

// badRequestError is a request that cannot be forwarded as it is.
type badRequestError struct{ reason string }

func (e *badRequestError) Error() string { return e.reason }

// statusOf is the status a client gets for an error. 499 is for the log: the
// client is gone.
func statusOf(err error) int {
	var (
		bad   *badRequestError
		qt    *queueTimeoutError
		dial  *dialError
		up    *upstreamError
		start *startError
		full  *queueFullError
	)
	switch {
	case errors.Is(err, errClientGone):
		return 499
	case errors.Is(err, errBodyTimeout):
		return http.StatusRequestTimeout
	case errors.Is(err, errTimeout), errors.As(err, &qt):
		return http.StatusGatewayTimeout
	case errors.As(err, &bad):
		return http.StatusBadRequest
	case errors.As(err, &start), errors.As(err, &full),
		errors.Is(err, errDraining), errors.Is(err, errRevisionRemoved):
		return http.StatusServiceUnavailable
	case errors.As(err, &dial), errors.As(err, &up):
		return http.StatusBadGateway
	}
	return http.StatusBadGateway
}

// retryAfter is in seconds; 0 is no such header.
func retryAfter(err error) int {
	var full *queueFullError
	if errors.As(err, &full) || errors.Is(err, errDraining) {
		return 1
	}
	return 0
}

// maxErrorText bounds what a failed start may say to a client.
const maxErrorText = 1024

// writeError answers with a short text that names the request.
func writeError(w http.ResponseWriter, status int, text, id string, retry int) {
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "..."
	}
	body := "skep: " + text + "\nrequest: " + id + "\n"
	h := w.Header()
	h["Content-Type"] = []string{"text/plain; charset=utf-8"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	h["X-Request-Id"] = []string{id}
	if retry > 0 {
		h["Retry-After"] = []string{strconv.Itoa(retry)}
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // the client may be gone; nothing to do then
}
