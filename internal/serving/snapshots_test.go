package serving

import (
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// What a service asks for by an annotation, and the driver cannot do, is
// refused by the annotation's name; what asks for nothing is not.
func TestSnapshotsAsked(t *testing.T) {
	t.Parallel()
	defaults := snapshots.Options{Policy: snapshots.DefaultPolicy, Restore: true, Diffs: 2}
	gvisor := sandbox.Capabilities{Snapshot: true, LayeredSnapshot: true, RestoreModes: []sandbox.RestoreMode{sandbox.RestoreEager}}
	for _, tt := range []struct {
		key, value   string
		runc, gvisor bool // refused there
	}{
		{SnapshotPolicyAnnotation, "off", false, false},
		{SnapshotPolicyAnnotation, "at-scale-down", true, false},
		{SnapshotRestoreAnnotation, "auto", false, false},
		{SnapshotRestoreAnnotation, "off", false, false},
		{SnapshotRestoreAnnotation, "always", true, false},
		{SnapshotRestoreAnnotation, "pager", true, true},
		{SnapshotPoolAnnotation, "0", false, false},
		{SnapshotPoolAnnotation, "1", true, false},
		{SnapshotPoolAnnotation, "auto", true, false},
		{SnapshotDiffsAnnotation, "0", false, false},
		{SnapshotDiffsAnnotation, "3", true, false},
		{WorkingSetAnnotation, "last", true, true},
		{WorkingSetAnnotation, "union", true, true},
		{BeforePathAnnotation, "/a", true, false},
		{AfterPathAnnotation, "/a", true, false},
		{BeforeSignalAnnotation, "USR1", true, false},
		{AfterSignalAnnotation, "USR1", true, false},
		{HookTimeoutAnnotation, "5s", true, false},
	} {
		o, err := snapshotOptions(map[string]string{tt.key: tt.value}, defaults)
		if err != nil {
			t.Errorf("%s: %s: %v", tt.key, tt.value, err)
			continue
		}
		for _, on := range []struct {
			driver string
			can    sandbox.Capabilities
			on     bool
			bad    bool
		}{
			{"runc", sandbox.Capabilities{}, true, tt.runc},
			{"gvisor", gvisor, true, tt.gvisor},
			{"gvisor", gvisor, false, tt.runc}, // --snapshots=false
		} {
			_, err := o.Check(on.driver, on.can, on.on)
			if (err != nil) != on.bad || err != nil && !strings.Contains(err.Error(), tt.key) {
				t.Errorf("%s: %s with %s, snapshots %v: %v", tt.key, tt.value, on.driver, on.on, err)
			}
		}
	}
	if o, err := snapshotOptions(map[string]string{SnapshotDiffsAnnotation: "3"}, defaults); err != nil || o.Diffs != 3 {
		t.Errorf("differences: %d, %v", o.Diffs, err)
	}
	for _, bad := range []string{"", "-1", "9", "many"} {
		if err := ValidateAnnotations(map[string]string{SnapshotDiffsAnnotation: bad}); err == nil || !strings.Contains(err.Error(), SnapshotDiffsAnnotation) {
			t.Errorf("%s: %q: %v", SnapshotDiffsAnnotation, bad, err)
		}
	}
}
