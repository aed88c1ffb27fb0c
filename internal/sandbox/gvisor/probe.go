package gvisor

import (
	"context"

	"github.com/skep-dev/skep/internal/sandbox/probe"
)

// Probe implements sandbox.Driver.
func (d *Driver) Probe(ctx context.Context) error { return probe.Run(ctx, d) }
