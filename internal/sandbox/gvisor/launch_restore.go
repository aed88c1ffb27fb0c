package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	gvboot "gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/skep-dev/skep/internal/netns"
)

// What runsc's library does in container.Restore the launcher does itself,
// with the same calls to the sandbox: so it can do half of it ahead, and serve
// the snapshot's pages.

// prepareRestore does what is done ahead. In the background mode that is
// everything but the restore, so that what waits is small; otherwise it is
// the restore, too, and the function waits in its first step.
func (p *launching) prepareRestore(ctx context.Context, l *launch) (err error) {
	ns, ok := specutils.GetNS(specs.NetworkNamespace, p.container.Spec)
	if !ok {
		return errors.New("the spec has no network namespace")
	}
	var args *gvboot.CreateLinksAndRoutesArgs
	if err := netns.Do(ns.Path, func() (err error) {
		args, err = takeLinks(p.conf)
		return err
	}); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	defer closeAll(args.Files)
	if err := call(ctx, p.container.Sandbox.ControlSocketPath, gvboot.ContMgrSetNetworkArgs, args, nil, args.Files...); err != nil {
		return err
	}
	if score := p.container.Spec.Process.OOMScoreAdj; score != nil {
		name := fmt.Sprintf("/proc/%d/oom_score_adj", p.container.SandboxPid())
		if err := os.WriteFile(name, []byte(strconv.Itoa(*score)), 0); err != nil {
			return err
		}
	}
	if p.pages, p.snapshot, err = servePages(l.restore); err != nil || l.background {
		return err
	}
	return p.restore(ctx, false)
}

// startRestored has the function go on.
func (p *launching) startRestored(ctx context.Context, l *launch) error {
	if l.background {
		return p.restore(ctx, true)
	}
	return release(ctx, p.container.Sandbox.ControlSocketPath)
}

// restore restores the sandbox. In the background, it does not wait for the
// function's memory.
func (p *launching) restore(ctx context.Context, background bool) error {
	opts := &gvboot.RestoreOpts{UseCheckpointGofer: true, Background: background}
	err := call(ctx, p.container.Sandbox.ControlSocketPath, gvboot.ContMgrRestore, opts, nil, p.snapshot)
	if errors.Is(err, errGone) {
		err = fmt.Errorf("%w: the snapshot may be damaged", err)
	}
	return errors.Join(err, p.snapshot.Close())
}
