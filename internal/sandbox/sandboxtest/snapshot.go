package sandboxtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

const (
	// snapshotPIDs is the limit of the sandbox that is saved. In gVisor each
	// fork of the function copies up to 4 MB, and all must fit into its memory.
	snapshotPIDs = 40
	// snapshotMB is what its function keeps in memory.
	snapshotMB = 24
	// clockError is how wrong a restored sandbox's clock may be, and
	// snapshotAge how old its snapshot is at least when the clock is looked
	// at: a clock that stood still is found out.
	clockError  = 2 * time.Second
	snapshotAge = 2 * clockError
)

// snapshots is one saved sandbox, which the tests share: a boot is the most
// expensive part for many drivers.
type snapshots struct {
	*suite
	base  *box // was saved, and runs
	image sandbox.Image
	taken time.Time
	state guestState        // in the snapshot
	live  guestState        // of the saved sandbox, which went on
	seen  map[string]string // random bytes and machine IDs, and who had them
}

// guestState is what a snapshot must bring back.
type guestState struct {
	count int    // calls of /count so far
	sum   string // of what is remembered
	own   string // content of /srv/own
}

func testSnapshot(t *testing.T, s *suite) {
	checkSnapshotCapabilities(t, s.driver)
	if !s.driver.Capabilities().Snapshot || t.Failed() {
		return
	}
	sn := &snapshots{suite: s, seen: map[string]string{}}
	sn.saveBase(t)
	for _, test := range []struct {
		name string
		fn   func(*testing.T)
	}{
		{"Compatibility", sn.testCompatibility},
		{"Record", sn.testRecord}, // gives the following a working set
		{"Modes", sn.testModes},
		{"Prepared", sn.testPrepared},
		{"Lives", sn.testLives},
		{"Limits", sn.testLimits},
		{"Again", sn.testAgain},
		{"Frozen", sn.testFrozen},
		{"CannotSave", sn.testCannotSave},
		{"Refused", sn.testRefused},
		{"Damaged", sn.testDamaged},
		{"Cancelled", sn.testCancelled},
		{"Reap", sn.testReap},
	} {
		t.Run(test.name, test.fn)
	}
	sn.base.check(t, &sn.live) // all the while it went on
}

// checkSnapshotCapabilities checks that what the capabilities say of
// snapshots fits together.
func checkSnapshotCapabilities(t *testing.T, d sandbox.Driver) {
	t.Helper()
	c := d.Capabilities()
	_, is := d.(sandbox.Snapshotter)
	switch {
	case c.Snapshot && !is:
		t.Errorf("capabilities %+v, but the driver is no Snapshotter", c)
	case c.Snapshot && len(c.RestoreModes) == 0:
		t.Errorf("capabilities %+v: snapshots, but no restore modes", c)
	case !c.Snapshot && (len(c.RestoreModes) > 0 || c.LayeredSnapshot || c.OnDemandMemory):
		t.Errorf("capabilities %+v: kinds of snapshots, but no snapshots", c)
	}
	known := []sandbox.RestoreMode{
		sandbox.RestoreMap, sandbox.RestoreHint, sandbox.RestoreEager, sandbox.RestorePager, sandbox.RestoreBackground,
	}
	if c.PreparedMode != "" && !slices.Contains(c.RestoreModes, c.PreparedMode) {
		t.Errorf("PreparedMode %q is none of the restore modes %q", c.PreparedMode, c.RestoreModes)
	}
	for i, m := range c.RestoreModes {
		if !slices.Contains(known, m) || slices.Contains(c.RestoreModes[:i], m) {
			t.Errorf("restore modes %q: %q is unknown, or there twice", c.RestoreModes, m)
		}
	}
}

// saveBase boots a sandbox, gives it state, and saves it.
func (sn *snapshots) saveBase(t *testing.T) {
	b := sn.serve(t, func(spec *sandbox.Spec) { spec.Resources.PIDs = snapshotPIDs })
	sn.base = b
	b.get(t, "/remember", &sn.state.sum, "mb", fmt.Sprint(snapshotMB), "seed", "1")
	for range 3 {
		b.get(t, "/count", &sn.state.count)
	}
	sn.state.own = "written before the snapshot"
	b.get(t, "/write", nil, "path", "/srv/own", "data", sn.state.own)
	b.get(t, "/write", nil, "path", "/srv/data", "data", "changed")
	sn.unique(t, b, "the saved sandbox")
	sn.image = sandbox.Image{Dirs: []string{sn.save(t, b, false)}}
	sn.taken = time.Now()
	sn.live = sn.state
	b.check(t, &sn.live) // it goes on
	b.waitOutput(t, "stdout", "guest: to stdout\n")
	if e, out, _, err := b.exec(t, sandbox.Process{Args: []string{"/guest", "echo", "on"}}, nil); err != nil || e.Code != 0 || out != "on\n" {
		t.Errorf("Exec after Save: %+v, %q, %v", e, out, err)
	}
}

// folder makes a folder for a snapshot, which is removed at the test's end.
func (sn *snapshots) folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(sn.dir, "snapshot-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// save saves a sandbox to a new folder.
func (sn *snapshots) save(t *testing.T, b *box, diff bool) string {
	t.Helper()
	b.http.CloseIdleConnections()
	dir := sn.folder(t)
	begin := time.Now()
	if err := b.sb.(sandbox.Saver).Save(sn.ctx(t), sandbox.SaveOptions{Dir: dir, Diff: diff}); err != nil {
		t.Fatalf("Save: %v", err)
	}
	t.Logf("saved in %v", time.Since(begin))
	for _, name := range []string{sandbox.FileMemory, sandbox.FileState} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || !fi.Mode().IsRegular() {
			t.Errorf("snapshot: file %s: %v", name, err)
		}
	}
	return dir
}

// clone makes everything for a sandbox that is to be restored.
func (sn *snapshots) clone(t *testing.T, r sandbox.Restore, hostname string) *box {
	t.Helper()
	b := sn.suite.prepare(t, false, func(spec *sandbox.Spec) {
		spec.Hostname = hostname
		spec.Resources.PIDs = snapshotPIDs
	})
	b.restore = &r
	return b
}

// restored restores a sandbox in the driver's own mode.
func (sn *snapshots) restored(t *testing.T, hostname string) *box {
	t.Helper()
	b := sn.clone(t, sandbox.Restore{Image: sn.image}, hostname)
	b.create(t)
	b.start(t)
	return b
}

// check checks that the guest has the state, and counts once more.
func (b *box) check(t testing.TB, st *guestState) {
	t.Helper()
	var n int
	var sum, own string
	st.count++
	if b.get(t, "/count", &n); n != st.count {
		t.Errorf("sandbox %s counts %d, want %d", b.spec.Hostname, n, st.count)
	}
	if b.get(t, "/recall", &sum); sum != st.sum {
		t.Errorf("sandbox %s: checksum of memory %s, want %s", b.spec.Hostname, sum, st.sum)
	}
	if b.get(t, "/read", &own, "path", "/srv/own"); own != st.own {
		t.Errorf("sandbox %s: own file is %q, want %q", b.spec.Hostname, own, st.own)
	}
	if b.get(t, "/read", &own, "path", "/srv/data"); own != "changed" {
		t.Errorf("sandbox %s: changed file is %q", b.spec.Hostname, own)
	}
}

// unique checks that no other sandbox was given the same random bytes.
func (sn *snapshots) unique(t testing.TB, b *box, who string) {
	t.Helper()
	var random map[string]string
	b.get(t, "/random", &random)
	for source, bytes := range random {
		who := who + "'s " + source
		if other, ok := sn.seen[bytes]; ok {
			t.Errorf("%s gives %s, as did %s", who, bytes, other)
		}
		sn.seen[bytes] = who
	}
}

func (sn *snapshots) testCompatibility(t *testing.T) {
	d := sn.driver.(sandbox.Snapshotter)
	c, err := d.Compatibility(sn.ctx(t), sn.base.spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("version %s, kernel %s, agent %s, CPU %s with %d features, %d bytes, %d CPUs",
		c.Version, c.Kernel, c.Agent, c.CPUModel, len(c.CPUFeatures), c.MemoryBytes, c.VCPUs)
	if c.Version == "" || c.CPUModel == "" || len(c.CPUFeatures) == 0 || c.VCPUs <= 0 {
		t.Errorf("compatibility %+v: something is missing", c)
	}
	if c.MemoryBytes != sn.opts.MemoryBytes {
		t.Errorf("the inside sees %d bytes of memory, of %d", c.MemoryBytes, sn.opts.MemoryBytes)
	}
	if f := slices.Clone(c.CPUFeatures); !slices.IsSorted(f) || len(slices.Compact(f)) < len(c.CPUFeatures) {
		t.Errorf("CPU features are not sorted, each once: %q", c.CPUFeatures)
	}
	bigger := *sn.base.spec
	bigger.Resources.MemoryBytes *= 2
	if c2, err := d.Compatibility(sn.ctx(t), &bigger); err != nil || c2.MemoryBytes != 2*c.MemoryBytes {
		t.Errorf("with twice the memory: %d bytes, %v", c2.MemoryBytes, err)
	}
}

// testRecord records a working set, which later restores are given.
func (sn *snapshots) testRecord(t *testing.T) {
	r := sandbox.Restore{Image: sn.image, Record: true}
	b := sn.clone(t, r, "recorded")
	sb, err := b.make(sn.ctx(t))
	if !sn.driver.Capabilities().OnDemandMemory {
		if err == nil {
			b.sb = sb
			t.Error("Prepare promised a recording, which the driver is not capable of")
		} else if !errors.Is(err, sandbox.ErrUnsupported) {
			t.Errorf("Prepare: %v, want ErrUnsupported", err)
		}
		return
	}
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	b.sb = sb
	b.start(t)
	b.get(t, "/count", nil) // the first response
	path := filepath.Join(sn.dir, "workingset")
	if err := sb.(sandbox.Recorder).Recorded(sn.ctx(t), path); err != nil {
		t.Fatalf("Recorded: %v", err)
	}
	ws, err := pager.OpenWorkingSet(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	all, zero := ws.Pages()
	t.Logf("the first request touches %d pages, %d of zeros", all, zero)
	if err := ws.Verify(sn.ctx(t)); err != nil || all == 0 {
		t.Errorf("working set of %d pages: %v", all, err)
	}
	if limit := int(sn.opts.MemoryBytes) / ws.PageSize() * 3 / 4; all > limit {
		t.Errorf("the working set of one request has %d pages", all)
	}
	var sum string
	if b.get(t, "/recall", &sum); sum != sn.state.sum { // after the recording
		t.Errorf("checksum of memory %s, want %s", sum, sn.state.sum)
	}
	if err := sb.(sandbox.Recorder).Recorded(sn.ctx(t), path+"2"); err == nil {
		t.Error("the recording could be ended twice")
		_ = os.Remove(path + "2")
	}
	sn.image.WorkingSet = path
	b.destroy(t)
	sn.recordAgain(t, ws)
}
