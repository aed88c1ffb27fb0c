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

	"github.com/spf13/cobra"

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
	os.Args = asCalled(os.Args)
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	began := markRuns(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !*began { // what cobra refuses: commands, arguments, flags
		err = coded(exitUsage, err)
	}
	fmt.Fprintln(os.Stderr, "skep: "+err.Error())
	var c *codedError
	if errors.As(err, &c) {
		return c.code
	}
	return exitFailed
}

// markRuns notes in began whether a command was run at all.
func markRuns(cmd *cobra.Command) (began *bool) {
	began = new(bool)
	var mark func(*cobra.Command)
	mark = func(c *cobra.Command) {
		if run := c.RunE; run != nil {
			c.RunE = func(cmd *cobra.Command, args []string) error {
				*began = true
				return run(cmd, args)
			}
		}
		for _, sub := range c.Commands() {
			mark(sub)
		}
	}
	mark(cmd)
	return began
}
