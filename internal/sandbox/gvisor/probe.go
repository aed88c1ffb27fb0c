package gvisor

import (
	"context"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/probe"
)

// Probe implements sandbox.Driver.
func (d *Driver) Probe(ctx context.Context, scratch sandbox.State) error {
	return probe.Run(ctx, d, scratch)
}
