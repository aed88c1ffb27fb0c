// Package host is what a tool holds of the machine while it runs: networks, and
// the places of micro-VMs. All of it is in one folder with a lock. When a tool
// dies, the next one that starts finds the folder without an owner, and removes
// what is recorded in it.
package host

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Reaper removes what a micro-VM left, see sandbox.Driver.
type Reaper interface {
	Reap(ctx context.Context, s sandbox.State) error
}

// Config of a Host.
type Config struct {
	// Base is the folder in which every tool has one of its own. Its path must
	// be short. It is made if missing.
	Base string
	// Reaper of the micro-VMs, also of those of dead tools, which may have had
	// another driver.
	Reaper Reaper
	// Link is the kind of network that the VMs have. The default is a TAP device.
	Link sandbox.LinkKind
	// Pool is how many networks to keep ready.
	Pool int
	Log  *slog.Logger
}

// Names in a tool's folder.
const (
	lockName = "lock"
	netName  = "net"
	vmsName  = "vms"
)

// cleanTimeout bounds the removal of what one dead tool left.
const cleanTimeout = time.Minute

// Host is open for one tool. Its methods are safe for concurrent use.
type Host struct {
	dir    string
	node   string
	lock   *os.File
	reaper Reaper
	link   sandbox.LinkKind
	nets   *network.Manager

	mu  sync.Mutex
	vms map[string]*Place
}

// Open makes the tool's folder, after removing those of dead tools.
func Open(ctx context.Context, c Config) (_ *Host, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("not root: networks and cgroups cannot be made (try sudo)")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Base, err = filepath.Abs(c.Base); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Base, 0o711); err != nil {
		return nil, fmt.Errorf("folder of running tools: %w", err)
	}
	if c.Link == "" {
		c.Link = sandbox.LinkTAP
	}
	h := &Host{reaper: c.Reaper, link: c.Link, vms: map[string]*Place{}}
	if err := h.take(ctx, c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(h.dir), h.lock.Close())
		}
	}()
	if err := os.Mkdir(filepath.Join(h.dir, vmsName), 0o711); err != nil {
		return nil, err
	}
	h.nets, err = network.New(ctx, network.Config{
		Dir: filepath.Join(h.dir, netName), NodeID: h.node, Log: c.Log,
		Pools: map[sandbox.LinkKind]int{c.Link: c.Pool},
	})
	return h, err
}

// take makes the folder and locks it. Nobody else looks at folders meanwhile.
func (h *Host) take(ctx context.Context, c Config) error {
	all, err := lockFile(filepath.Join(c.Base, lockName), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer all.Close() //nolint:errcheck // nothing was written
	if err := removeDead(ctx, c); err != nil {
		// It is tried again by the next tool; this one can do without.
		c.Log.Warn("cannot remove all that an earlier tool left", "error", err)
	}
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	h.node = hex.EncodeToString(id[:])
	h.dir = filepath.Join(c.Base, h.node)
	if err := os.Mkdir(h.dir, 0o711); err != nil {
		return err
	}
	h.lock, err = lockFile(filepath.Join(h.dir, lockName), unix.LOCK_EX|unix.LOCK_NB)
	return err
}

func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

var nodePattern = regexp.MustCompile(`^[0-9a-f]{8}$`)

// removeDead removes what tools left that do not live any more.
func removeDead(ctx context.Context, c Config) error {
	entries, err := os.ReadDir(c.Base)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !nodePattern.MatchString(e.Name()) {
			continue
		}
		dir := filepath.Join(c.Base, e.Name())
		f, err := lockFile(filepath.Join(dir, lockName), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // it lives, or one of its children does
		}
		if err == nil {
			clean, cancel := context.WithTimeout(ctx, cleanTimeout)
			err = errors.Join(removeOne(clean, c, dir, e.Name()), f.Close())
			cancel()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", dir, err))
			continue
		}
		c.Log.Info("removed what an earlier tool left", "dir", dir)
	}
	return errors.Join(errs...)
}

func removeOne(ctx context.Context, c Config, dir, node string) error {
	vms, err := os.ReadDir(filepath.Join(dir, vmsName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, v := range vms {
		err := c.Reaper.Reap(ctx, sandbox.State{
			ID: v.Name(), Dir: filepath.Join(dir, vmsName, v.Name()), Cgroup: cgroupOf(node) + "/" + v.Name(),
		})
		if err != nil {
			return err
		}
	}
	nets, err := network.New(ctx, network.Config{Dir: filepath.Join(dir, netName), NodeID: node, Log: c.Log})
	if err != nil {
		return err
	}
	return errors.Join(nets.Close(ctx), removeGroup(ctx, node), os.RemoveAll(dir))
}

func cgroupOf(node string) string { return "skep-" + node }

func removeGroup(ctx context.Context, node string) error {
	g, err := cgroup.Load(cgroupOf(node))
	if err != nil {
		return err
	}
	return g.Delete(ctx)
}

// Lock is an open file that says, as long as any process has it open, that the
// tool lives. Children inherit it.
func (h *Host) Lock() *os.File { return h.lock }

// Close frees everything, micro-VMs that are left included.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	left := make([]*Place, 0, len(h.vms))
	for _, p := range h.vms {
		left = append(left, p)
	}
	h.mu.Unlock()
	var errs []error
	for _, p := range left {
		errs = append(errs, p.Release(ctx))
	}
	errs = append(errs, h.nets.Close(ctx), removeGroup(ctx, h.node))
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, h.lock.Close()) // the folder is the record of it
	}
	return errors.Join(os.RemoveAll(h.dir), h.lock.Close())
}
