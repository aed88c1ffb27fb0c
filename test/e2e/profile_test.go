package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestProfileNone: with vHive's --snapshots switched off no snapshot is made or
// used, and a service that asks for one is told so.
func TestProfileNone(t *testing.T) {
	t.Parallel()
	s := up(t, "--idle-after", "1s", "--sandbox", "gvisor", "--snapshots=false").importProbe()
	name := s.annotated("none", "gvisor", nil)
	first, _ := s.inside(name) // of the instance that the roll-out started
	s.atZero(name)
	if got, start := s.inside(name); start != "booted" || got.Born == first.Born {
		t.Errorf("%s as %+v", start, got)
	}
	s.fails(2, []string{"snapshots are off", "--snapshots=false"}, "snapshot", "list")
	if _, err := os.Stat(filepath.Join(s.Dir, "snapshots")); err == nil {
		t.Error("there is a folder of snapshots")
	}
	if strings.Contains(s.metrics(), "skep_snapshot_saves_total") {
		t.Error("snapshots are counted")
	}
	const annotation = "skep.dev/snapshot-pool"
	s.fails(4, []string{annotation, "--snapshots=false"}, "deploy", "-f", write(t, "asks.yaml", fmt.Sprintf(
		"apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: asks}\nspec: {template: {metadata: {annotations: {%s: \"1\"}}, spec: {containers: [{image: %s}]}}}\n", annotation, probeRef)))
}
