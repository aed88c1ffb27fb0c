// Package network gives every sandbox a network of its own, from pools of
// ready-made ones.
//
// A lease is one or two network namespaces. The "router" namespace holds the
// gateway's address and the firewall; it is where the node dials from
// ([github.com/skep-dev/skep/internal/netns.Dial]). For veth links a second
// namespace, "guest", holds the sandbox's end of the pair; a TAP device needs
// none. Inside, all leases are identical: same names, addresses and MACs, no
// IPv6. So any sandbox, and any snapshot of one, fits any lease.
//
// # What a guest can reach
//
// By default nothing: it may answer connections made to it, and no more. With
// [Options].Egress it may also open connections, through NAT, to public
// addresses; never to the host, to other guests, to private and link-local
// ranges (and so to the cloud's metadata service), except for
// [Config].AllowPrivate and for port 53 of [Config].DNS. Frames with another
// source than the guest's own MAC and address are dropped at the door.
//
// # What is changed on the host
//
// Without egress nothing. With it: an interface sk<NodeID><4 digits> for each
// lease, one nftables table skep-<NodeID> (no other is ever touched), and
// net.ipv4.ip_forward, which is switched on if it was off, and off again by
// the Close of the last Skep if no other table has a chain at the forward
// hook. A drop in any nftables table is final: if the host has a firewall of
// its own that drops forwarded packets, it must allow sk* interfaces itself (a
// warning says so).
//
// # Crashes
//
// Everything is inside the namespaces, and goes with them, except their mounts
// in [Config].Dir and the host's end of an uplink, which are recorded there
// before they are made. [New] removes what an earlier manager left.
package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/skep-dev/skep/internal/sandbox"
)

// ErrClosed is returned by Acquire after Close.
var ErrClosed = errors.New("network manager is closed")

// Config of a [Manager].
type Config struct {
	// Dir belongs to the manager alone: for each lease a directory with the
	// mounts of its namespaces. It is made if missing.
	Dir string
	// NodeID is 8 lower-case hexadecimal digits, part of every name that is
	// visible on the host.
	NodeID string
	// Pools says how many leases of each kind to keep ready.
	Pools map[sandbox.LinkKind]int
	// Uplinks is the range for the addresses of uplinks, two for each lease
	// with egress; it must not overlap the host's routes. Default: the first
	// of 10.231.0.0/16, 10.232.0.0/16 ... 10.254.0.0/16 that does not
	// and that no other manager of the host has claimed.
	Uplinks netip.Prefix
	// DNS are the resolvers of sandboxes with egress. Default: the host's
	// that are IPv4 and not on loopback.
	DNS []net.IP
	// AllowPrivate are exceptions from the private and link-local ranges
	// that sandboxes with egress cannot reach. The host's own addresses and
	// Uplinks stay out of reach.
	AllowPrivate []netip.Prefix
	// Log takes what goes wrong in the background. Default: slog.Default().
	Log *slog.Logger
}

// Options of one lease.
type Options struct {
	// Kind of link that the driver wants.
	Kind sandbox.LinkKind
	// Egress lets the guest open connections to public addresses.
	Egress bool
}

// Manager makes and removes leases. Its methods are safe for concurrent use.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	lock  *os.File  // held as long as the manager owns Dir
	claim io.Closer // of the range of uplinks; nil before there is one
	host  *host

	pools map[sandbox.LinkKind]*pool
	stop  context.CancelFunc // ends the refilling of pools
	work  sync.WaitGroup     // refills and Acquires under way

	closing sync.Mutex // one Close at a time

	mu     sync.Mutex
	closed bool
	leases map[string]*Lease // all that exist, pooled or taken, by ID
}

var nodeID = regexp.MustCompile(`^[0-9a-f]{8}$`)

// New removes what an earlier manager of the same Dir and NodeID left, and
// starts to fill the pools in the background, until Close. It fails if the
// earlier manager still lives.
func New(ctx context.Context, cfg Config) (*Manager, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if !nodeID.MatchString(cfg.NodeID) {
		return nil, fmt.Errorf("network: NodeID %q must be 8 lower-case hexadecimal digits", cfg.NodeID)
	}
	for kind, n := range cfg.Pools {
		if err := checkKind(kind); err != nil {
			return nil, err
		}
		if n < 0 || n > 1024 {
			return nil, fmt.Errorf("network: size %d of pool %s must be between 0 and 1024", n, kind)
		}
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil || cfg.Dir == "" {
		return nil, fmt.Errorf("network: Dir %q must be the path of a directory: %w", cfg.Dir, errors.Join(err, os.ErrInvalid))
	}
	cfg.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("network: make Dir: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		cfg: cfg, log: cfg.Log, lock: lock,
		pools:  map[sandbox.LinkKind]*pool{},
		leases: map[string]*Lease{},
	}
	if err := m.start(ctx); err != nil {
		if m.claim != nil {
			err = errors.Join(err, m.claim.Close())
		}
		return nil, errors.Join(err, os.Remove(lock.Name()), lock.Close())
	}
	return m, nil
}

func (m *Manager) start(ctx context.Context) error {
	if err := recoverDir(ctx, m.cfg.Dir, m.cfg.NodeID, m.log); err != nil {
		return fmt.Errorf("network: remove what an earlier manager left in %s: %w", m.cfg.Dir, err)
	}
	uplinks, claimed, err := chooseUplinks(m.cfg.Uplinks)
	if err != nil {
		return err
	}
	m.claim = claimed
	dns := m.cfg.DNS
	if dns == nil {
		dns = hostResolvers()
	}
	if m.host, err = newHost(m.cfg.NodeID, uplinks, dns, m.cfg.AllowPrivate, m.log); err != nil {
		return err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	m.stop = stop
	for kind, size := range m.cfg.Pools {
		if size > 0 {
			p := newPool(size)
			m.pools[kind] = p
			m.work.Go(func() { m.fill(background, kind, p) })
		}
	}
	return nil
}

// Acquire takes a lease from the pool, or makes one if the pool is empty. The
// caller must Release it.
func (m *Manager) Acquire(ctx context.Context, o Options) (*Lease, error) {
	if err := checkKind(o.Kind); err != nil {
		return nil, err
	}
	if err := m.enter(); err != nil {
		return nil, err
	}
	defer m.work.Done()
	l := m.pools[o.Kind].take()
	if l == nil {
		var err error
		if l, err = m.make(ctx, o.Kind); err != nil {
			return nil, err
		}
	}
	if o.Egress {
		if err := l.addUplink(ctx); err != nil {
			return nil, errors.Join(
				fmt.Errorf("network: give egress to lease %s: %w", l.id, err),
				l.Release(context.WithoutCancel(ctx)))
		}
	}
	return l, nil
}

// enter registers work, which Close waits for.
func (m *Manager) enter() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.work.Add(1)
	return nil
}

// Close removes every lease, taken ones too, and all that the manager made
// on the host. It is idempotent; after an error it may be tried again.
func (m *Manager) Close(ctx context.Context) error {
	m.closing.Lock()
	defer m.closing.Unlock()
	if m.lock == nil {
		return nil
	}
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop()
	idle := make(chan struct{})
	go func() { m.work.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-ctx.Done():
		return fmt.Errorf("network: close: wait for leases being made: %w", ctx.Err())
	}
	m.mu.Lock()
	leases := make([]*Lease, 0, len(m.leases))
	for _, l := range m.leases {
		leases = append(leases, l)
	}
	m.mu.Unlock()
	var errs []error
	for _, l := range leases {
		errs = append(errs, l.Release(ctx))
	}
	errs = append(errs, m.host.close(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("network: close: %w", err)
	}
	lock := m.lock
	m.lock = nil
	return errors.Join(os.Remove(lock.Name()), lock.Close(), m.claim.Close())
}

func checkKind(kind sandbox.LinkKind) error {
	switch kind {
	case sandbox.LinkVeth, sandbox.LinkTAP:
		return nil
	}
	return fmt.Errorf("network: link kind %q must be %q or %q", kind, sandbox.LinkVeth, sandbox.LinkTAP)
}

func newID() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
