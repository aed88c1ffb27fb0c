// Package gvisor runs functions in gVisor: a kernel of their own, written in
// Go, in a process that is allowed very little on the host. It needs no
// hardware virtualisation.
//
// gVisor's runsc is part of our own executable, see MaybeRunsc.
//
// A snapshot is gVisor's checkpoint, without compression: its kernel as a graph
// of objects, and the pages that are not zeros, each where it is in the
// sandbox's memory. Restoring decodes the one and copies the other: clones share
// no memory, and the time grows with the function's, if slowly. A function that
// is up within some 30 ms by itself, as a small one in Go is, gains nothing from
// it unless it is prepared ahead. A difference lacks the pages that are as in
// what the sandbox was restored from; to find them all are compared, after
// the sandbox goes on, so it saves room, not time.
package gvisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Name is the driver's name.
const Name = "gvisor"

// cleanupTime bounds what is done after a failure.
const cleanupTime = 30 * time.Second

// Config configures a Driver.
type Config struct {
	// Runsc is the path of a program whose main calls MaybeRunsc first.
	// Empty means the executable that runs, whose main must then do so.
	Runsc string
}

// Driver makes gVisor sandboxes.
type Driver struct {
	runsc string
}

// New returns a driver.
func New(c Config) *Driver {
	if c.Runsc == "" {
		c.Runsc = selfExe
	}
	return &Driver{runsc: c.Runsc}
}

// Name implements sandbox.Driver.
func (*Driver) Name() string { return Name }

// Capabilities implements sandbox.Driver.
func (*Driver) Capabilities() sandbox.Capabilities {
	return sandbox.Capabilities{
		Link: sandbox.LinkVeth, OwnKernel: true,
		Snapshot: true, RestoreModes: slices.Clone(restoreModes), PreparedMode: sandbox.RestoreEager,
		LayeredSnapshot: true, Disks: true,
	}
}

// Create implements sandbox.Driver.
//
// runsc takes the address and the routes from the interface in Link.NetNS
// when the sandbox starts, and does not give them back: whoever owns the link
// sets them again before it is used once more. The interface itself stays
// where it is.
func (d *Driver) Create(ctx context.Context, spec *sandbox.Spec) (sandbox.Sandbox, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := checkDisks(spec, nil); err != nil {
		return nil, fmt.Errorf("create gVisor sandbox %s: %w", spec.ID, err)
	}
	if _, err := cgroup.Load(spec.Cgroup); err != nil {
		return nil, fmt.Errorf("create gVisor sandbox %s: %w", spec.ID, err)
	}
	s := newInstance(d.runsc, spec)
	if err := s.create(ctx); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return nil, fmt.Errorf("create gVisor sandbox %s: %w", spec.ID, errors.Join(err, s.Destroy(ctx)))
	}
	return s, nil
}

var _ sandbox.Driver = (*Driver)(nil)
