// Package node runs instances of functions on this machine. It brings
// together what an instance needs (image, network, sandbox, log), records
// all of it in a journal before it is made, and gives it back on every path.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/internal/node/logs"
	"github.com/skep-dev/skep/internal/node/pace"
	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Images is what a node needs of an image store.
type Images interface {
	// Use pins an image by digest until release is called and makes sure
	// that its root file system exists.
	Use(ctx context.Context, refOrDigest string) (img *image.Image, release func(), err error)
}

// Networks is what a node needs of the network.
type Networks interface {
	Acquire(ctx context.Context, o network.Options) (*network.Lease, error)
}

// Config says what a node works with.
type Config struct {
	Dir     string // its own: sandboxes live below it
	ID      string // NodeID, 8 hexadecimal digits
	Drivers []sandbox.Driver
	// Missing says why a driver is not among Drivers, by its name.
	Missing  map[string]error
	Journal  *journal.Journal
	Images   Images
	Networks Networks
	Logs     *logs.Store
	// Snapshots are those of the node's revisions; nil: none are made or used.
	Snapshots *snapshots.Catalog
	// PoolMemory bounds the memory of sandboxes that are kept prepared, in
	// bytes; 0 means DefaultPoolMemory.
	PoolMemory int64
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are kept but not registered
}

// Node runs instances. It is safe for concurrent use.
type Node struct {
	cfg     Config
	drivers map[string]sandbox.Driver

	ctx    context.Context // ends when the node closes
	cancel context.CancelFunc

	mu        sync.Mutex
	instances map[string]*Instance
	starts    map[slotKey]*pace.Starts
	closed    bool
	launches  sync.WaitGroup // under way, their clean-up included

	metrics *metrics
	pool    pool
	// saveTimeout and endPatience are the constants, unless in a test.
	saveTimeout, endPatience time.Duration
	work                     sync.WaitGroup // in the background, until ctx ends
}

// ErrClosed is returned by Launch after Close.
var ErrClosed = errors.New("the node is closed")

const (
	kindSandbox  = "sandbox"
	cleanTimeout = 30 * time.Second // for giving back what an instance held
)

// record is what the journal keeps of a sandbox.
type record struct {
	Driver string        `json:"driver"`
	State  sandbox.State `json:"state"`
}

// Open makes a node and removes what an earlier process of it left behind.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	n := &Node{cfg: cfg, drivers: map[string]sandbox.Driver{}, instances: map[string]*Instance{}, starts: map[slotKey]*pace.Starts{}, saveTimeout: saveTimeout, endPatience: endPatience}
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if cfg.PoolMemory <= 0 {
		n.cfg.PoolMemory = DefaultPoolMemory
	}
	for _, d := range cfg.Drivers {
		n.drivers[d.Name()] = d
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open node: %w", err)
	}
	left, err := n.reap(ctx)
	if err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	if len(left) > 0 {
		n.work.Go(func() { n.reapAgain(left) })
	}
	n.pool.init(n)
	n.metrics = newMetrics(n, cfg.Registerer)
	n.work.Go(n.pool.run)
	return n, nil
}

// reap removes every sandbox in the journal: after a start, none of them has
// an owner. Those that cannot be removed stay recorded, and are returned: one
// that is stuck must not keep all others from their work.
func (n *Node) reap(ctx context.Context) (left []journal.Record, err error) {
	records, err := n.cfg.Journal.List(ctx, kindSandbox)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if err := n.reapRecord(ctx, r); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			n.cfg.Log.Error("remove an orphaned sandbox, will try again", "id", r.ID, "error", err)
			left = append(left, r)
		}
	}
	return left, nil
}

func (n *Node) reapRecord(ctx context.Context, r journal.Record) error {
	var rec record
	if err := json.Unmarshal(r.Data, &rec); err != nil {
		return fmt.Errorf("journal record %s: %w", r.ID, err)
	}
	if err := n.reapOne(ctx, rec); err != nil {
		return err
	}
	n.cfg.Log.Info("removed an orphaned sandbox", "id", r.ID, "driver", rec.Driver)
	return nil
}

// Pauses between tries to remove what could not be removed at the start.
const (
	firstReapPause = 2 * time.Second
	maxReapPause   = 5 * time.Minute
)

func (n *Node) reapAgain(left []journal.Record) {
	for pause := firstReapPause; len(left) > 0; pause = min(2*pause, maxReapPause) {
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(pause):
		}
		left = slices.DeleteFunc(left, func(r journal.Record) bool {
			ctx, cancel := context.WithTimeout(n.ctx, cleanTimeout)
			defer cancel()
			err := n.reapRecord(ctx, r)
			if err != nil && n.ctx.Err() == nil {
				n.cfg.Log.Warn("remove an orphaned sandbox, will try again", "id", r.ID, "error", err)
			}
			return err == nil
		})
	}
}

func (n *Node) reapOne(ctx context.Context, rec record) error {
	d := n.drivers[rec.Driver]
	if d == nil {
		_, err := n.Driver(rec.Driver)
		return fmt.Errorf("sandbox %s: %w", rec.State.ID, err)
	}
	if err := d.Reap(ctx, rec.State); err != nil {
		return fmt.Errorf("reap sandbox %s: %w", rec.State.ID, err)
	}
	if err := removeDir(rec.State.Dir); err != nil {
		return fmt.Errorf("reap sandbox %s: %w", rec.State.ID, err)
	}
	return n.cfg.Journal.Delete(ctx, kindSandbox, rec.State.ID)
}

// Driver returns a driver by name.
func (n *Node) Driver(name string) (sandbox.Driver, error) {
	d := n.drivers[name]
	if d == nil && n.cfg.Missing[name] != nil {
		return nil, fmt.Errorf("sandbox driver %q is not available on this node: %w", name, n.cfg.Missing[name])
	}
	if d == nil {
		return nil, fmt.Errorf("there is no sandbox driver %q; this node has %s", name, strings.Join(slices.Sorted(maps.Keys(n.drivers)), ", "))
	}
	return d, nil
}

// Instances lists what runs now, in no order.
func (n *Node) Instances() []*Instance {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*Instance, 0, len(n.instances))
	for _, i := range n.instances {
		out = append(out, i)
	}
	return out
}

// Close ends the launches under way, stops every instance that is left and
// removes the cgroup they shared.
func (n *Node) Close(ctx context.Context) error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.work.Wait()
	n.launches.Wait() // bounded by cleanTimeout
	n.pool.drain(ctx)
	var wg sync.WaitGroup
	instances := n.Instances()
	errs := make([]error, len(instances))
	for i, inst := range instances {
		wg.Go(func() { errs[i] = inst.Stop(ctx, 0) })
	}
	wg.Wait()
	parent, err := cgroup.Load(n.CgroupParent())
	if err == nil {
		err = parent.DeleteIfEmpty()
	}
	return errors.Join(append(errs, err)...)
}

func (n *Node) sandboxDir(id string) string { return filepath.Join(n.cfg.Dir, id) }

// CgroupParent is the cgroup that holds all of the node's sandboxes.
func (n *Node) CgroupParent() string { return "skep-" + n.cfg.ID }
