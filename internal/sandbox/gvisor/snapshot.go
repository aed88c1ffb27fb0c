package gvisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"gvisor.dev/gvisor/pkg/cpuid"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// restoreModes are the modes of restoring, the best first.
//
// RestoreBackground is best for a sandbox that is not prepared long before:
// until Start it holds nothing of the snapshot, and then the function runs on
// while its memory is copied. In RestoreEager, Prepare restores everything:
// Start then takes no time to speak of, but what waits is as large as what
// runs.
var restoreModes = []sandbox.RestoreMode{sandbox.RestoreBackground, sandbox.RestoreEager}

// initCPUID has gVisor look at the CPU.
var initCPUID = sync.OnceFunc(cpuid.Initialize)

// Compatibility implements sandbox.Snapshotter.
func (*Driver) Compatibility(_ context.Context, spec *sandbox.Spec) (sandbox.Compatibility, error) {
	initCPUID()
	r := ocispec.Defaults(spec.Resources)
	host := cpuid.HostFeatureSet()
	c := sandbox.Compatibility{
		Version:     Version(),
		CPUModel:    cpuModel(),
		MemoryBytes: r.MemoryBytes,
		VCPUs:       cpus(r.CPUMillis),
		// Besides the features, gVisor wants this to be the same.
		CPUFeatures: []string{fmt.Sprintf("cache_line_%d", host.CacheLine())},
	}
	for _, f := range cpuid.AllFeatures() {
		if host.HasFeature(f) {
			c.CPUFeatures = append(c.CPUFeatures, f.String())
		}
	}
	slices.Sort(c.CPUFeatures)
	c.CPUFeatures = slices.Compact(c.CPUFeatures)
	return c, nil
}

// cpuModel is the processor's name, for people: gVisor goes by the features.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), ":")
		switch strings.TrimSpace(key) {
		case "model name", "CPU part":
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// Prepare implements sandbox.Snapshotter. What Create says of the link is
// true here, too.
func (d *Driver) Prepare(ctx context.Context, spec *sandbox.Spec, r sandbox.Restore) (sandbox.Sandbox, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	base, err := checkRestore(&r)
	if err == nil {
		err = checkDisks(spec, base.Mounts)
	}
	if err != nil {
		return nil, fmt.Errorf("restore gVisor sandbox %s: %w", spec.ID, err)
	}
	if _, err := cgroup.Load(spec.Cgroup); err != nil {
		return nil, fmt.Errorf("restore gVisor sandbox %s: %w", spec.ID, err)
	}
	s := newInstance(d.runsc, spec)
	s.restore, s.base, s.mounts = &r, base, base.Mounts
	if err := s.create(ctx); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return nil, fmt.Errorf("restore gVisor sandbox %s: %w", spec.ID, errors.Join(err, s.Destroy(ctx)))
	}
	return s, nil
}

// maxLayers bounds the folders of an Image.
const maxLayers = 64

// checkRestore checks that r can be done, and fills in the mode.
func checkRestore(r *sandbox.Restore) (*index, error) {
	if r.Mode == "" {
		r.Mode = restoreModes[0]
	}
	switch n := len(r.Image.Dirs); {
	case !slices.Contains(restoreModes, r.Mode):
		return nil, fmt.Errorf("mode %q: %w; there are %q", r.Mode, sandbox.ErrUnsupported, restoreModes)
	case r.Record:
		return nil, fmt.Errorf("record a working set: %w", sandbox.ErrUnsupported)
	case n == 0 || n > maxLayers:
		return nil, fmt.Errorf("a snapshot of %d layers: there must be 1 to %d", n, maxLayers)
	}
	dirs := make([]string, len(r.Image.Dirs))
	for i, dir := range r.Image.Dirs {
		var err error
		if dirs[i], err = filepath.Abs(dir); err != nil { // also for the launcher, which is elsewhere
			return nil, err
		}
	}
	r.Image.Dirs = dirs
	return checkImage(dirs)
}

var _ sandbox.Snapshotter = (*Driver)(nil)
