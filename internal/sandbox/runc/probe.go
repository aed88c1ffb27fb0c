package runc

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	gorunc "github.com/containerd/go-runc"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/probe"
)

// Probe implements [sandbox.Driver]: it runs a container to its end.
func (d *Driver) Probe(ctx context.Context, scratch sandbox.State) error {
	path, err := exec.LookPath(d.command)
	if err != nil {
		return missing(d.command, err)
	}
	if err := d.checkVersion(ctx, path); err != nil {
		return err
	}
	return probe.Run(ctx, d, scratch)
}

// checkVersion wants 1.1, the first with `run --keep`.
func (d *Driver) checkVersion(ctx context.Context, path string) error {
	v, err := (&gorunc.Runc{Command: path}).Version(ctx)
	if err != nil {
		return fmt.Errorf("probe runc: %s --version: %w", path, err)
	}
	if strings.HasPrefix(v.Runc, "0.") || v.Runc == "1.0" || strings.HasPrefix(v.Runc, "1.0.") || strings.HasPrefix(v.Runc, "1.0-") {
		return fmt.Errorf("probe runc: %s has version %s, 1.1 or newer is needed; install it: apt-get install runc", path, v.Runc)
	}
	return nil
}
