package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/saved"
)

// driftLimit is the share of pages beyond the working set above which it has
// drifted.
const driftLimit = 0.3

// checkDrift tells the snapshot how well its working set fitted.
func (i *Instance) checkDrift() {
	d, ok := i.sandbox.(sandbox.Drifter)
	if !ok {
		return
	}
	drift, ok := d.Drift()
	if !ok {
		return
	}
	if again(i.use, drift) {
		i.node.cfg.Log.Info("the working set does not fit, recording it anew", "namespace", i.launch.Namespace,
			"revision", i.launch.Revision, "missing", drift.Missing, "size", drift.Size, "failed", drift.Failed)
	}
}

// again tells a snapshot how well its working set fitted, and returns true when
// it is recorded anew for that. A damaged one gets no better by waiting.
func again(use *snapshots.Use, drift pager.Drift) bool {
	if errors.Is(drift.Failed, pager.ErrDamaged) {
		return use.Spoiled()
	}
	return use.Fitted(!drift.Drifted(driftLimit))
}

// mergeSets joins the working set that was just recorded at path with the
// image's older one, as the policy says.
func mergeSets(ctx context.Context, policy snapshots.WorkingSets, image sandbox.Image, path string) (err error) {
	recorded, err := readSet(path)
	if err != nil || image.WorkingSet == "" || policy == "" || policy == snapshots.LastSet {
		return err
	}
	old, err := readSet(image.WorkingSet)
	if err != nil {
		return err
	}
	var merged pager.Recording
	if policy == snapshots.UniteSets {
		merged, err = pager.Union(old, recorded)
	} else {
		merged, err = pager.Intersection(old, recorded)
	}
	if err != nil {
		return fmt.Errorf("merge working sets: %w", err)
	}
	if len(merged.Pages) == 0 {
		return nil // nothing in common: the latest
	}
	memory, err := saved.OpenMemory(image.Dirs)
	if err != nil {
		return fmt.Errorf("merge working sets: %w", err)
	}
	defer memory.Close() //nolint:errcheck // read only
	source, err := memory.Whole()
	if err != nil {
		return fmt.Errorf("merge working sets: %w", err)
	}
	return pager.WriteWorkingSet(ctx, path, merged, source)
}

// readSet checks a working-set file and returns which pages it has.
func readSet(path string) (pager.Recording, error) {
	set, err := pager.OpenWorkingSet(path, false)
	if err != nil {
		return pager.Recording{}, err
	}
	r := set.Recording()
	return r, errors.Join(set.Close())
}
