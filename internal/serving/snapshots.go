package serving

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/node/snapshots"
)

// Annotations of a revision template about snapshots. docs/snapshots.md tells
// of them at length.
const (
	// SnapshotPolicyAnnotation says when a snapshot is made: off, after-ready,
	// after-first-response, after-n=N or at-scale-down.
	SnapshotPolicyAnnotation = "skep.dev/snapshot-policy"
	// SnapshotRestoreAnnotation says whether and how instances are restored:
	// auto, always, off or a restore mode of the driver.
	SnapshotRestoreAnnotation = "skep.dev/snapshot-restore"
	// SnapshotPoolAnnotation says how many sandboxes are kept prepared: a
	// number or auto.
	SnapshotPoolAnnotation = "skep.dev/snapshot-pool"
	// SnapshotDiffsAnnotation says how many differences may lie on a whole
	// snapshot: a number.
	SnapshotDiffsAnnotation = "skep.dev/snapshot-diffs"
	// WorkingSetAnnotation says how recordings of working sets become one: last,
	// union or intersection.
	WorkingSetAnnotation = "skep.dev/snapshot-working-set"
	// BeforePathAnnotation and AfterPathAnnotation are paths that the function
	// is sent a POST of before a snapshot is made, and after a restore.
	BeforePathAnnotation = "skep.dev/snapshot-before-path"
	AfterPathAnnotation  = "skep.dev/snapshot-after-path"
	// BeforeSignalAnnotation and AfterSignalAnnotation are signals that it is
	// sent then, such as SIGUSR2.
	BeforeSignalAnnotation = "skep.dev/snapshot-before-signal"
	AfterSignalAnnotation  = "skep.dev/snapshot-after-signal"
	// HookTimeoutAnnotation is how long it may take to answer.
	HookTimeoutAnnotation = "skep.dev/snapshot-hook-timeout"
)

// snapshots reads the annotations about snapshots.
func (p *plan) snapshots(r *v1.Revision, _ *corev1.Container, d Defaults) error {
	o, err := snapshotOptions(r.Annotations, d.Snapshot)
	p.fleet.Launch.Snapshot = o
	return err
}

func snapshotOptions(annotations map[string]string, o snapshots.Options) (_ snapshots.Options, err error) {
	for _, a := range []struct {
		name string
		read func(string) error
	}{
		{SnapshotPolicyAnnotation, func(s string) (err error) {
			o.Policy, err = snapshots.ParsePolicy(s)
			o.Asked.Policy = unless(s == "off", SnapshotPolicyAnnotation)
			return err
		}},
		{SnapshotRestoreAnnotation, func(s string) error {
			o.Asked.Restore = unless(s == "auto" || s == "off", SnapshotRestoreAnnotation)
			return o.SetRestore(s)
		}},
		{SnapshotPoolAnnotation, func(s string) (err error) {
			o.Pool, err = snapshots.ParsePool(s)
			o.Asked.Pool = unless(o.Pool == snapshots.Fixed(0), SnapshotPoolAnnotation)
			return err
		}},
		{SnapshotDiffsAnnotation, func(s string) (err error) {
			o.Diffs, err = snapshots.ParseDiffs(s)
			o.Asked.Diffs = unless(o.Diffs == 0, SnapshotDiffsAnnotation)
			return err
		}},
		{WorkingSetAnnotation, func(s string) (err error) {
			o.WorkingSet, err = snapshots.ParseWorkingSets(s)
			o.Asked.WorkingSet = WorkingSetAnnotation
			return err
		}},
		{BeforePathAnnotation, hook(&o, BeforePathAnnotation, &o.Before.Path, snapshots.ParsePath)},
		{AfterPathAnnotation, hook(&o, AfterPathAnnotation, &o.After.Path, snapshots.ParsePath)},
		{BeforeSignalAnnotation, hook(&o, BeforeSignalAnnotation, &o.Before.Signal, snapshots.ParseSignal)},
		{AfterSignalAnnotation, hook(&o, AfterSignalAnnotation, &o.After.Signal, snapshots.ParseSignal)},
		{HookTimeoutAnnotation, func(s string) error {
			t, err := time.ParseDuration(s)
			if err != nil || t <= 0 || t > snapshots.MaxHookTimeout {
				return fmt.Errorf("%q is not a duration such as 5s, of at most %s", s, snapshots.MaxHookTimeout)
			}
			o.Before.Timeout, o.After.Timeout = t, t
			o.Asked.Hook = cmp.Or(o.Asked.Hook, HookTimeoutAnnotation)
			return nil
		}},
	} {
		if v, ok := annotations[a.name]; ok {
			if err := a.read(v); err != nil {
				return o, fmt.Errorf("spec.template.metadata.annotations.%s: %w", a.name, err)
			}
		}
	}
	return o, nil
}

// hook reads a part of a hook.
func hook[T any](o *snapshots.Options, name string, to *T, parse func(string) (T, error)) func(string) error {
	return func(s string) (err error) {
		*to, err = parse(s)
		o.Asked.Hook = cmp.Or(o.Asked.Hook, name)
		return err
	}
}

// unless is the name of what was asked for, unless that is nothing.
func unless(nothing bool, name string) string {
	if nothing {
		return ""
	}
	return name
}

// ValidateAnnotations checks Skep's own annotations of a revision template.
// The error names the annotation.
func ValidateAnnotations(annotations map[string]string) error {
	const in = "spec.template.metadata.annotations."
	if _, err := snapshotOptions(annotations, snapshots.Options{}); err != nil {
		return err
	}
	if v, ok := annotations[EgressAnnotation]; ok {
		if _, err := strconv.ParseBool(v); err != nil {
			return fmt.Errorf("%s%s: %q is neither true nor false", in, EgressAnnotation, v)
		}
	}
	if v, ok := annotations[DiskAnnotation]; ok {
		if q, err := resource.ParseQuantity(v); err != nil || q.Value() < 1<<20 {
			return fmt.Errorf("%s%s: %q is not a quantity of at least 1Mi", in, DiskAnnotation, v)
		}
	}
	return nil
}
