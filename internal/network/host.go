package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// host is what leases with egress need on the host, for all of them together.
type host struct {
	node    string
	uplinks netip.Prefix
	dns     []net.IP
	allow   []netip.Prefix
	mtu     int // of uplinks
	log     *slog.Logger

	mu     sync.Mutex
	opened bool
	used   map[uint32]bool // indexes of uplinks
	next   uint32
}

func newHost(node string, uplinks netip.Prefix, dns []net.IP, allow []netip.Prefix, log *slog.Logger) (*host, error) {
	h := &host{node: node, uplinks: uplinks, used: map[uint32]bool{}, mtu: uplinkMTU(), log: log}
	for _, ip := range dns {
		if ip.To4() == nil {
			return nil, fmt.Errorf("network: DNS resolver %s must be an IPv4 address, as sandboxes have no IPv6", ip)
		}
		h.dns = append(h.dns, ip.To4())
	}
	for _, p := range allow {
		if !p.IsValid() || !p.Addr().Is4() {
			return nil, fmt.Errorf("network: AllowPrivate %s must be an IPv4 prefix", p)
		}
		h.allow = append(h.allow, p)
	}
	return h, nil
}

const (
	tablePrefix = "skep-"
	// A table with this (empty) chain says that ip_forward was off before the
	// first Skep came.
	forwardMarker = "ip-forward-was-off"
	ipForward     = "/proc/sys/net/ipv4/ip_forward"
)

func tableName(node string) string { return tablePrefix + node }

// uplinkPrefix begins the names of the node's interfaces on the host.
func uplinkPrefix(node string) string { return "sk" + node }

// open makes the host ready to forward, once.
func (h *host) open(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.opened {
		return nil
	}
	err := withForwarding(ctx, func(forwarding bool) error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		chains, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		h.warn(chains)
		// Off, or on only because of another Skep: whoever closes last
		// switches it off.
		h.addTable(c, !forwarding || slices.ContainsFunc(chains, isMarker))
		if err := c.Flush(); err != nil {
			return fmt.Errorf("make nftables table %s: %w", tableName(h.node), err)
		}
		if !forwarding {
			return setForwarding(true)
		}
		return nil
	})
	h.opened = err == nil
	return err
}

func (h *host) addTable(c *nftables.Conn, mark bool) {
	ours := uplinkPrefix(h.node)
	table := c.AddTable(&nftables.Table{Name: tableName(h.node), Family: nftables.TableFamilyINet})
	if mark {
		c.AddChain(&nftables.Chain{Name: forwardMarker, Table: table})
	}
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		policy := nftables.ChainPolicyAccept // what is not ours is none of our business
		return c.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy,
		})
	}
	// Before other tables' destination NAT, which could lead a packet for
	// one of the host's addresses to some service behind it.
	prerouting := chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	input := chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	for _, rule := range h.resolverRules() {
		addRule(c, prerouting, inPrefix(ours), ipv4(), rule, accept)
		addRule(c, input, inPrefix(ours), ipv4(), rule, accept)
	}
	addRule(c, prerouting, inPrefix(ours), notUnicast(), drop)
	addRule(c, input, inPrefix(ours), drop)

	forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	addRule(c, forward, inPrefix(ours), outPrefix(expr.CmpOpEq, ours), drop)
	addRule(c, forward, inPrefix(ours), accept)
	addRule(c, forward, outPrefix(expr.CmpOpEq, ours), established, accept)
	addRule(c, forward, outPrefix(expr.CmpOpEq, ours), drop)

	postrouting := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	addRule(c, postrouting, ipv4(), address(offsetSource, h.uplinks), outPrefix(expr.CmpOpNeq, ours), masquerade)
}

// close removes the table. The uplinks must be gone.
func (h *host) close(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.opened {
		return nil
	}
	if err := removeTable(ctx, tableName(h.node)); err != nil {
		return err
	}
	h.opened = false
	return nil
}

// removeTable removes the table of a node, and switches ip_forward off if it
// was a Skep that switched it on and nobody else seems to forward. It is
// idempotent.
func removeTable(ctx context.Context, name string) error {
	return withForwarding(ctx, func(forwarding bool) error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
		if err != nil {
			return fmt.Errorf("list nftables tables: %w", err)
		}
		exists := false
		for _, t := range tables {
			exists = exists || t.Name == name
		}
		if !exists {
			return nil
		}
		chains, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		marked, others := false, false
		for _, chain := range chains {
			if chain.Table.Name == name && chain.Table.Family == nftables.TableFamilyINet {
				marked = marked || chain.Name == forwardMarker
			} else if forwards(chain) {
				others = true
			}
		}
		if marked && !others && forwarding {
			if err := setForwarding(false); err != nil {
				return err
			}
		}
		c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		if err := c.Flush(); err != nil {
			return fmt.Errorf("remove nftables table %s: %w", name, err)
		}
		return nil
	})
}

func isMarker(c *nftables.Chain) bool {
	return c.Name == forwardMarker && c.Table.Family == nftables.TableFamilyINet &&
		strings.HasPrefix(c.Table.Name, tablePrefix)
}

// forwards reports whether a chain decides what the host forwards.
func forwards(c *nftables.Chain) bool {
	switch c.Table.Family {
	case nftables.TableFamilyINet, nftables.TableFamilyIPv4:
		return c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward
	}
	return false
}

// warn of firewalls that we cannot overrule.
func (h *host) warn(chains []*nftables.Chain) {
	for _, c := range chains {
		if forwards(c) && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			h.log.Warn("another firewall drops forwarded packets by default: sandboxes have egress only if it accepts those from and to the uplinks",
				"table", c.Table.Name, "chain", c.Name, "uplinks", uplinkPrefix(h.node)+"*")
		}
	}
}

// withForwarding runs fn while no other Skep on this host looks at or changes
// ip_forward.
func withForwarding(ctx context.Context, fn func(forwarding bool) error) error {
	f, err := os.Open(ipForward)
	if err != nil {
		return fmt.Errorf("open sysctl: %w", err)
	}
	defer f.Close()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return fmt.Errorf("lock %s: %w", ipForward, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("wait for another process to release %s: %w", ipForward, ctx.Err())
		}
	}
	value, err := os.ReadFile(ipForward)
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	return fn(strings.TrimSpace(string(value)) != "0")
}

func setForwarding(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := setSysctl("ipv4/ip_forward", value); err != nil {
		return errors.Join(errors.New("egress needs forwarding between interfaces"), err)
	}
	return nil
}
