package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/skep-dev/skep/internal/fingerprint"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapfaas/snapdir"
)

// restore brings a snapshot back.
func (m *machine) restore(ctx context.Context) error {
	s, ok := m.driver.(sandbox.Snapshotter)
	if !ok || !m.driver.Capabilities().Snapshot {
		return fmt.Errorf("--load_dir: the driver %s has no snapshots", m.driver.Name())
	}
	var err error
	if m.loaded, err = snapdir.Open(m.conf.Load.Dirs...); err != nil {
		return err
	}
	if dir := m.conf.Dump.WorkingSet; dir != "" {
		if err := m.loaded.CheckDumpSet(dir); err != nil {
			return err
		}
	}
	self, err := m.describe(ctx)
	if err != nil {
		return err
	}
	if err := m.loaded.Fits(self); err != nil {
		return err
	}
	r, err := m.plan()
	if err != nil {
		return err
	}
	err = m.phase("VM creation", func() (err error) {
		m.box, err = s.Prepare(ctx, m.spec, r)
		return err
	})
	if errors.Is(err, sandbox.ErrOtherDisk) {
		return fmt.Errorf("--appfs: the snapshot has another app in it: %w", err)
	}
	if err != nil {
		return err
	}
	m.record = r.Record
	return m.phase("restore memory", func() error { return m.box.Start(ctx) })
}

// describe says what a snapshot of this machine needs.
func (m *machine) describe(ctx context.Context) (snapdir.Machine, error) {
	s, ok := m.driver.(sandbox.Snapshotter)
	if !ok {
		return snapdir.Machine{}, fmt.Errorf("the driver %s has no snapshots", m.driver.Name())
	}
	compat, err := s.Compatibility(ctx, m.spec)
	if err != nil {
		return snapdir.Machine{}, err
	}
	root, err := fingerprint.File(m.spec.Rootfs)
	if err != nil {
		return snapdir.Machine{}, fmt.Errorf("--rootfs: %w", err)
	}
	return snapdir.Machine{Sandbox: m.driver.Name(), MemoryMiB: m.conf.MemoryMiB, VCPUs: m.conf.VCPUs, Rootfs: root, Driver: compat}, nil
}

// plan translates SnapFaaS's flags for the driver: lazy is its mapping of the
// base's file, onto which diffs are copied; eager is a copy of all. One mapping
// shows one file: diffs that are lazy, too, need the pager, which then serves
// all pages, the base's included. A driver that maps nothing copies all behind
// the function that runs.
func (m *machine) plan() (sandbox.Restore, error) {
	l, caps := m.conf.Load, m.driver.Capabilities()
	r := sandbox.Restore{Record: m.conf.Dump.WorkingSet != ""}
	wanted := []sandbox.RestoreMode{sandbox.RestoreMap, sandbox.RestoreBackground}
	switch {
	case r.Record && !caps.OnDemandMemory:
		return r, fmt.Errorf("--dump_ws: the driver %s cannot tell which pages are touched", m.driver.Name())
	case l.WorkingSet && !caps.OnDemandMemory:
		return r, fmt.Errorf("--load_ws: the driver %s has no working sets", m.driver.Name())
	case r.Record:
		wanted = nil // the driver knows how it records
		if l.CopyDiff {
			m.note("--copy_diff: with --dump_ws each page is read when it is touched first, as that is what is recorded")
		}
	case l.CopyBase:
		wanted = []sandbox.RestoreMode{sandbox.RestoreEager}
		if l.WorkingSet {
			m.note("--load_ws: all memory is loaded ahead anyway, by --copy_base")
		}
	case l.WorkingSet && l.LazyDiff:
		wanted = []sandbox.RestoreMode{sandbox.RestorePager}
	case l.WorkingSet:
		wanted = []sandbox.RestoreMode{sandbox.RestoreHint, sandbox.RestorePager, sandbox.RestoreEager}
	case l.LazyDiff && len(l.Dirs) > 1:
		wanted = []sandbox.RestoreMode{sandbox.RestorePager}
		if !slices.Contains(caps.RestoreModes, sandbox.RestorePager) {
			break
		}
		m.note("--copy_diff=false: each page is read when it is touched first, and none is shared with other VMs")
	}
	for _, mode := range wanted {
		if slices.Contains(caps.RestoreModes, mode) {
			r.Mode = mode
			break
		}
	}
	if r.Mode == "" && wanted != nil {
		m.note(fmt.Sprintf("the driver %s cannot restore by %s, it does so in its own way", m.driver.Name(), wanted[0]))
	}
	var err error
	r.Image, err = m.loaded.Image(l.WorkingSet && !l.CopyBase)
	return r, err
}
