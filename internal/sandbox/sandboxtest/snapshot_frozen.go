package sandboxtest

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
)

// testFrozen has a thread of the function draw random numbers all the time, and
// looks how often it drew under the name of the sandbox that was saved: in each
// clone that must be as often as it did until the snapshot. Otherwise clones go
// on before they are somebody else, and draw the same numbers.
func (sn *snapshots) testFrozen(t *testing.T) {
	const clones = 3
	b := sn.restored(t, "draws")
	b.get(t, "/draw", nil)
	defer b.destroy(t)
	image := sandbox.Image{Dirs: []string{sn.save(t, b, sn.driver.Capabilities().LayeredSnapshot)}}
	if sn.driver.Capabilities().LayeredSnapshot {
		image.Dirs = append(image.Dirs, sn.image.Dirs...)
	}
	first := 0
	for i := range clones {
		name := fmt.Sprint("draws-", i)
		clone := sn.clone(t, sandbox.Restore{Image: image}, name)
		clone.create(t)
		clone.start(t)
		var drawn map[string]int
		clone.get(t, "/drawn", &drawn)
		t.Logf("drawn by name: %v", drawn)
		if drawn["draws"] == 0 || drawn[name] == 0 {
			t.Fatal("it did not draw all the time")
		}
		if i == 0 {
			first = drawn["draws"]
		}
		if drawn["draws"] != first {
			t.Errorf("under the old name one clone drew %d times, another %d times", drawn["draws"], first)
		}
		delete(drawn, "draws")
		delete(drawn, name)
		if len(drawn) > 0 {
			t.Errorf("it was also %v", slices.Collect(maps.Keys(drawn)))
		}
		clone.destroy(t)
	}
}
