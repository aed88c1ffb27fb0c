package sandbox

import (
	"context"
	"path/filepath"

	"github.com/skep-dev/skep/internal/pager"
)

// Snapshotter is implemented by the drivers whose Capabilities say Snapshot.
type Snapshotter interface {
	Driver

	// Compatibility says what a snapshot of a sandbox with this spec depends
	// on here: it can be restored where that is the same.
	Compatibility(ctx context.Context, spec *Spec) (Compatibility, error)

	// Prepare is Create for a sandbox that Start then resumes from a snapshot
	// instead of starting Spec.Process. It does all that can be done ahead of
	// the request, so that prepared sandboxes can be kept in a pool. On error
	// nothing is left behind.
	//
	// The spec must be like the one the snapshot was made with, but for ID, Dir,
	// Hostname, Link (of the same insides), Cgroup, Stdout and Stderr. The image
	// is only read, and must stay as it is until Destroy.
	//
	// Start returns once the sandbox runs and has the new hostname, a machine
	// ID of its own, the right wall clock and fresh entropy in its kernel: then
	// work may be handed to it. A damaged or foreign snapshot is an error of
	// Prepare or Start, never a sandbox that half works.
	Prepare(ctx context.Context, spec *Spec, r Restore) (Sandbox, error)
}

// Saver is implemented by the sandboxes of a Snapshotter.
type Saver interface {
	// Save makes a snapshot of the started sandbox in o.Dir, during which the
	// sandbox stands still. Connections do not survive into the snapshot;
	// whoever calls sees to it that none are in use. The sandbox goes on
	// afterwards, also on error, unless that proves impossible: then Wait
	// returns. On error o.Dir is left as it was.
	Save(ctx context.Context, o SaveOptions) error
}

// Recorder is implemented by restored sandboxes that were prepared with
// Restore.Record.
type Recorder interface {
	// Recorded writes the pages touched from the restore until now, in order
	// where the driver knows it, to a new working-set file, and ends the
	// recording. Call it when the first response is out.
	Recorded(ctx context.Context, path string) error
}

// Drifter is implemented by restored sandboxes that see what is touched beyond
// the working set that they were prepared with.
type Drifter interface {
	// Drift compares the working set with what was touched from the restore
	// until now; ok is false if this sandbox does not see that. Call it when the
	// first response is out.
	Drift() (d pager.Drift, ok bool)
}

// Compatibility is what a snapshot and the place that restores it must agree
// on, besides Spec and root file system.
type Compatibility struct {
	Version     string // of the driver's technology, e.g. QEMU's or gVisor's
	Kernel      string // release or digest; "" if the driver has none of its own
	Agent       string // digest of the agent; "" if the driver has none
	CPUModel    string
	CPUFeatures []string // sorted, each once
	MemoryBytes int64    // the memory that the inside sees
	VCPUs       int
}

// Files of a snapshot, in the folders of an Image. A driver may add others,
// which are small.
const (
	// FileMemory is the memory, sparse: a hole is zeros in the last folder of
	// an Image, and in the others lets the next folder's show. It is never shorter
	// than that of the folder below, and where all have been made one file a driver
	// restores from that alone.
	FileMemory = "memory"
	// FileState is everything else that the driver saves.
	FileState = "state"
)

// Image is a snapshot on this machine's disk.
type Image struct {
	// Dirs are folders of files, the newest first: what Save made, what its
	// Parent was, and so on. One, unless the driver is capable of
	// LayeredSnapshot. All files but FileMemory are taken from the first.
	// FileMemory is readable by all, as a monitor with a user of its own may map
	// it; the folder keeps others away. Drivers leave the files as they are.
	Dirs []string
	// WorkingSet is a file as package pager writes it: what the first request
	// after a restore needs. "" means none is known.
	WorkingSet string
}

// File is the path of one of the files in the newest folder.
func (i *Image) File(name string) string { return filepath.Join(i.Dirs[0], name) }

// SaveOptions say how Save makes a snapshot.
type SaveOptions struct {
	// Dir is an existing, empty folder.
	Dir string
	// Diff makes FileMemory hold only what changed since the Image that the
	// sandbox was restored from. It needs LayeredSnapshot.
	Diff bool
}

// Restore says how a sandbox comes back.
type Restore struct {
	Image Image
	// Mode is one of Capabilities.RestoreModes; "" leaves it to the driver.
	Mode RestoreMode
	// Record makes the sandbox a Recorder. It needs OnDemandMemory; recording
	// costs time.
	Record bool
	// Ahead says that the sandbox will wait for its request, as in a pool: what
	// Start would do is done in Prepare, as far as it can be, though the sandbox
	// takes more memory while it waits. A driver may have nothing to do for it,
	// and none has while it records.
	Ahead bool
	// Port is the TCP port where the function listens: with Ahead it may be
	// connected to once, as readiness probes do, so that the way of a request is
	// known to the machine. 0: it is left alone.
	Port int
}

// RestoreMode is how a restored sandbox gets its memory.
type RestoreMode string

const (
	// RestoreMap maps the snapshot's file, copy on write: pages come from the
	// page cache, or from disk when first touched.
	RestoreMap RestoreMode = "map"
	// RestoreHint is RestoreMap, and has the kernel read the working set
	// ahead.
	RestoreHint RestoreMode = "map+hint"
	// RestoreEager copies all memory before the sandbox runs.
	RestoreEager RestoreMode = "eager"
	// RestorePager installs the working set ahead, and the rest page by page
	// on demand (REAP: Ustiugov et al., ASPLOS 2021, section 5).
	RestorePager RestoreMode = "pager"
	// RestoreBackground loads memory behind the running sandbox.
	RestoreBackground RestoreMode = "background"
)
