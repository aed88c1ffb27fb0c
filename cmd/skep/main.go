// Command skep is Skep: the daemon (`skep up`) and the command line that
// talks to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/skep-dev/skep/internal/sandbox/gvisor"
)

// Exit codes, as `skep help exit-codes` documents them.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNotFound
	exitNotReady
	exitNoDaemon
)

// codedError is an error with an exit code of its own.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

func coded(code int, err error) error {
	if err == nil {
		return nil
	}
	return &codedError{code, err}
}

func main() {
	// The binary runs itself again in these roles.
	gvisor.MaybeRunsc()
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(os.Stderr, "skep: "+err.Error())
	var c *codedError
	if errors.As(err, &c) {
		return c.code
	}
	return exitFailed
}
