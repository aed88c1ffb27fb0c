package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// Lease is a network for one sandbox. Its methods are safe for concurrent use.
type Lease struct {
	m    *Manager
	id   string
	kind sandbox.LinkKind
	dir  string

	mu       sync.Mutex
	uplink   *uplink
	released bool
}

// record is what must be known to remove a lease after a crash. It is written
// before what it names is made.
type record struct {
	Kind   sandbox.LinkKind `json:"kind"`
	Uplink string           `json:"uplink,omitempty"` // name of the host's interface
}

const recordName = "lease.json"

// make makes a lease without uplink.
func (m *Manager) make(ctx context.Context, kind sandbox.LinkKind) (*Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	id := newID()
	l := &Lease{m: m, id: id, kind: kind, dir: filepath.Join(m.cfg.Dir, id)}
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("network: make directory of lease: %w", err)
	}
	m.mu.Lock()
	m.leases[id] = l
	m.mu.Unlock()
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(
			fmt.Errorf("network: make %s lease %s: %w", kind, id, err),
			l.Release(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func (l *Lease) build(ctx context.Context) error {
	if err := l.write(record{Kind: l.kind}); err != nil {
		return err
	}
	if err := netns.Create(l.router()); err != nil {
		return err
	}
	if l.kind == sandbox.LinkTAP {
		return makeTAP(l.router())
	}
	if err := netns.Create(l.guest()); err != nil {
		return err
	}
	return makeVeth(ctx, l.router(), l.guest())
}

func (l *Lease) router() string { return filepath.Join(l.dir, "router") }
func (l *Lease) guest() string  { return filepath.Join(l.dir, "guest") }

// write replaces the lease's record.
func (l *Lease) write(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := filepath.Join(l.dir, recordName)
	// Not synced: what it describes does not survive the machine either.
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("record lease: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("record lease: %w", err)
	}
	return nil
}

// ID of the lease: 16 hexadecimal digits.
func (l *Lease) ID() string { return l.id }

// Link describes the lease to the sandbox's driver.
func (l *Lease) Link() sandbox.Link {
	link := sandbox.Link{
		NetNS:     l.router(),
		Interface: tapName,
		MAC:       slices.Clone(guestMAC),
		Address:   net.IPNet{IP: slices.Clone(guestIP), Mask: slices.Clone(linkMask)},
		Gateway:   slices.Clone(gatewayIP),
		MTU:       linkMTU,
		DialNS:    l.router(),
	}
	if l.kind == sandbox.LinkVeth {
		link.NetNS, link.Interface = l.guest(), guestName
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.uplink != nil {
		for _, ip := range l.m.host.dns {
			link.DNS = append(link.DNS, slices.Clone(ip))
		}
	}
	return link
}

// addUplink connects the router namespace to the host, and lets the guest
// through.
func (l *Lease) addUplink(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.m.host.open(ctx); err != nil {
		return err
	}
	u, err := l.m.host.allocate()
	if err != nil {
		return err
	}
	l.uplink = u
	if err := l.write(record{Kind: l.kind, Uplink: u.name}); err != nil {
		return err
	}
	return l.m.host.connect(ctx, u, l.router(), ingressName(l.kind))
}

// Release removes the lease; with egress this takes some 25 ms. It is
// idempotent, and after an error may be tried again. Give it a context that
// outlives a cancelled request. Destroy the sandbox first: a process that is still inside
// keeps the namespaces alive, though without any way out, until it ends.
func (l *Lease) Release(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("network: release lease %s: %w", l.id, err)
	}
	name := ""
	if l.uplink != nil {
		name = l.uplink.name
	}
	if err := removeLease(l.dir, name); err != nil {
		return fmt.Errorf("network: release lease %s: %w", l.id, err)
	}
	if l.uplink != nil {
		l.m.host.free(l.uplink)
	}
	l.released = true
	l.m.mu.Lock()
	delete(l.m.leases, l.id)
	l.m.mu.Unlock()
	return nil
}

// removeLease removes all that a lease may have made, its record last.
func removeLease(dir, uplink string) error {
	if uplink != "" {
		if err := removeLink(uplink); err != nil {
			return err
		}
	}
	for _, name := range []string{"guest", "router"} {
		if err := netns.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}
