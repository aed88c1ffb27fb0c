package node

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Reasons a start fails, in the words that Kubernetes users know.
const (
	ReasonImage    = "ImagePullFailed"
	ReasonNoDriver = "SandboxDriverUnavailable"
	ReasonExited   = "ContainerExited"
	ReasonOOM      = "OOMKilled"
	ReasonProbe    = "ProbeFailed"
	ReasonSandbox  = "SandboxFailed"
	ReasonDisk     = "DiskFull"
	ReasonSnapshot = "SnapshotFailed"
)

// StartError says why an instance did not become ready.
type StartError struct {
	Reason string // one of the Reason constants
	Err    error
	Tail   []string // last lines the function printed
}

func (e *StartError) Error() string {
	s := e.Err.Error()
	if len(e.Tail) > 0 {
		s += "; last output: " + strings.Join(e.Tail, " | ")
	}
	return s
}

func (e *StartError) Unwrap() error { return e.Err }

// explain turns an error of the driver into a StartError with what the
// function printed.
func (i *Instance) explain(err error) error {
	reason := ReasonSandbox
	if errors.Is(err, syscall.ENOSPC) {
		reason = ReasonDisk
		err = fmt.Errorf("%w (the node's disk is full: free some space or remove images with `skep image remove`)", err)
	}
	return &StartError{Reason: reason, Err: err, Tail: i.log.Tail()}
}

// ExitError says why the instance ended. It is valid after Done.
func (i *Instance) ExitError() error { return i.exitError(i.exit, "while it served") }

// exitError says why the function's process ended.
func (i *Instance) exitError(exit sandbox.Exit, when string) error {
	i.log.Drain(time.Second)
	e := &StartError{Reason: ReasonExited, Tail: i.log.Tail()}
	switch {
	case i.savedToEnd.Load():
		e.Reason = ReasonSnapshot
		e.Err = fmt.Errorf("the instance did not survive that a snapshot was made of it: %s", first(exit.Reason, fmt.Sprintf("exit code %d", exit.Code)))
	case exit.OOMKilled:
		e.Reason = ReasonOOM
		e.Err = fmt.Errorf("out of memory %s: the function needs more than its limit of %s (raise it with --memory or resources.limits.memory)",
			when, formatBytes(i.launch.Resources.MemoryBytes))
	case exit.Reason != "":
		e.Err = fmt.Errorf("the function's process ended %s: %s", when, exit.Reason)
	case exit.Signal != 0:
		e.Err = fmt.Errorf("the function's process ended %s: signal %d (%s)",
			when, exit.Signal, syscall.Signal(exit.Signal))
	default:
		e.Err = fmt.Errorf("the function's process ended %s: exit code %d", when, exit.Code)
	}
	return e
}

func formatBytes(n int64) string {
	if n <= 0 {
		return "the default"
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
