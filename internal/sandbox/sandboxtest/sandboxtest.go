// Package sandboxtest is the conformance suite of sandbox drivers. A driver
// that passes is interchangeable with the others; a driver's own tests call
//
//	func TestConformance(t *testing.T) {
//		sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { ... }, sandboxtest.Options{})
//	}
//
// For the test of Reap, Run starts its own test binary again as the owner of
// sandboxes, and kills it: the function that calls Run must do nothing else
// that the driver's constructor cannot stand twice.
package sandboxtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

// Options fit the suite to a driver's weight. They never switch a test off:
// what a driver need not do, its Capabilities say.
type Options struct {
	// Timeout bounds every single operation, such as starting a sandbox
	// until it answers. Default: 60 s. testenv.PatienceEnv multiplies it.
	Timeout time.Duration
	// MemoryBytes is what an ordinary sandbox gets. Default: 256 MiB.
	MemoryBytes int64
	// DiskBytes is what an ordinary sandbox gets; the disk of some drivers
	// counts as memory, so it must be well below. Default: 64 MiB.
	DiskBytes int64
	// Parallel is how many sandboxes the test of many starts at the same
	// time; it always holds 20 at once. Default: 20.
	Parallel int
	// Inspect, if set, looks at what the driver has made for a sandbox that
	// runs: one that was booted, and one that was restored.
	Inspect func(t *testing.T, state sandbox.State)
}

const many = 20

func (o *Options) setDefaults(t testing.TB) {
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 256 << 20
	}
	if o.DiskBytes == 0 {
		o.DiskBytes = 64 << 20
	}
	if o.Parallel == 0 {
		o.Parallel = many
	}
	if o.Inspect == nil {
		o.Inspect = func(*testing.T, sandbox.State) {}
	}
	o.Timeout = testenv.Patience(t, o.Timeout)
}

// Run proves that the drivers made by newDriver keep the contract.
func Run(t *testing.T, newDriver func(t *testing.T) sandbox.Driver, opts Options) {
	testenv.Root(t)
	opts.setDefaults(t)
	if job := os.Getenv(ownerEnv); job != "" {
		runOwner(t, newDriver, job)
		return
	}
	s := newSuite(t, func(testing.TB) sandbox.Driver { return newDriver(t) }, opts)
	for _, test := range []struct {
		name string
		fn   func(*testing.T, *suite)
	}{
		{"Probe", testProbe},
		{"HTTP", testHTTP},
		{"Streaming", testStreaming},
		{"Process", testProcess},
		{"Users", testUsers},
		{"Output", testOutput},
		{"Rootfs", testRootfs},
		{"DiskFull", testDiskFull},
		{"Memory", testMemory},
		{"MemoryAtOnce", testMemoryAtOnce},
		{"Stall", testStall},
		{"CPU", testCPU},
		{"PIDs", testPIDs},
		{"Exit", testExit},
		{"Signal", testSignal},
		{"WaitConcurrently", testWait},
		{"Exec", testExec},
		{"ExecCancel", testExecCancel},
		{"Dial", testDial},
		{"Isolation", testIsolation},
		{"Egress", testEgress},
		{"Stages", testStages},
		{"Cancelled", testCancelled},
		{"BadSpec", testBadSpec},
		{"Stats", testStats},
		{"Many", testMany},
		{"Reap", testReap},
		{"Disks", testDisks},
		{"Snapshot", testSnapshot},
	} {
		t.Run(test.name, func(t *testing.T) { test.fn(t, s) })
	}
}

// suite is what all tests of one Run share.
type suite struct {
	opts   Options
	driver sandbox.Driver
	image  string // EROFS image with the guest
	net    *network.Manager
	parent string // cgroup above all sandboxes of this run
	dir    string
}

func newSuite(t testing.TB, newDriver func(testing.TB) sandbox.Driver, opts Options) *suite {
	t.Helper()
	var id [4]byte
	_, _ = rand.Read(id[:])
	node := hex.EncodeToString(id[:])
	s := &suite{opts: opts, parent: "skep-" + node}
	// Not t.TempDir: its long paths do not fit into socket addresses.
	dir, err := os.MkdirTemp("", "skep-"+node+"-")
	if err != nil {
		t.Fatal(err)
	}
	s.dir = dir
	t.Cleanup(func() {
		checkMachine(t, s)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("left behind: %v", err)
		}
		g, err := cgroup.Load(s.parent)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.DeleteIfEmpty(); err != nil {
			t.Error(err)
		}
		if g.Exists() {
			t.Errorf("left behind: cgroup %s", s.parent)
		}
	})
	s.image = filepath.Join(dir, "guest.erofs")
	buildImage(t, s.image)
	ctx, cancel := context.WithTimeout(context.Background(), opts.Timeout)
	defer cancel()
	s.net, err = network.New(ctx, network.Config{Dir: filepath.Join(dir, "net"), NodeID: node, AllowPrivate: testNets})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), opts.Timeout)
		defer cancel()
		if err := s.net.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	s.driver = newDriver(t)
	return s
}
