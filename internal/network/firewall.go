package network

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// maxConnections that a guest may have open to the outside at a time: each
// takes an entry in the host's connection table, which all share.
const maxConnections = 4096

// denied are the addresses that no guest reaches unless AllowPrivate says so.
var denied = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
)

func prefixes(s ...string) []netip.Prefix {
	p := make([]netip.Prefix, len(s))
	for i := range s {
		p[i] = netip.MustParsePrefix(s[i])
	}
	return p
}

// routerTable is in each router namespace: it dies with it and needs no
// name of the node's.
const routerTable = "skep"

// addFirewall makes the firewall of a router namespace (the calling
// thread's): of what comes from the guest through the named interface, only
// answers pass.
func addFirewall(guest string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	policy := nftables.ChainPolicyDrop

	door := c.AddTable(&nftables.Table{Name: routerTable, Family: nftables.TableFamilyNetdev})
	ingress := c.AddChain(&nftables.Chain{
		Name: "ingress", Table: door, Type: nftables.ChainTypeFilter, Policy: &policy, Device: guest,
		Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter,
	})
	const link, network = expr.PayloadBaseLLHeader, expr.PayloadBaseNetworkHeader
	fromMAC := payload(link, 6, 6, expr.CmpOpEq, guestMAC)
	addRule(c, ingress, protocol(unix.ETH_P_IP), fromMAC,
		payload(network, offsetSource, 4, expr.CmpOpEq, guestIP), accept)
	addRule(c, ingress, protocol(unix.ETH_P_ARP), fromMAC,
		payload(network, 8, 6, expr.CmpOpEq, guestMAC), // sender's MAC
		payload(network, 14, 4, expr.CmpOpEq, guestIP), // sender's IP
		accept)

	table := c.AddTable(&nftables.Table{Name: routerTable, Family: nftables.TableFamilyIPv4})
	input := c.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter, Policy: &policy,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	addRule(c, input, in(guest), answerTCP(), accept)
	addRule(c, input, established, accept)
	// The host's own connections to the guest are not tracked: they come by
	// the thousand a second, and each would be remembered for two minutes.
	raw := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityRaw,
		})
	}
	tcp := meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})
	addRule(c, raw("output", nftables.ChainHookOutput), out(guest), tcp, notrack)
	addRule(c, raw("prerouting", nftables.ChainHookPrerouting), in(guest), tcp,
		address(offsetDestination, single(gatewayIP)), notrack)
	c.AddChain(forwardChain(table))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make firewall (are the kernel modules of nf_tables there?): %w", err)
	}
	return nil
}

func protocol(ethertype uint16) []expr.Any {
	return meta(expr.MetaKeyPROTOCOL, expr.CmpOpEq, binaryutil.BigEndian.PutUint16(ethertype))
}

func forwardChain(table *nftables.Table) *nftables.Chain {
	policy := nftables.ChainPolicyDrop
	return &nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Policy: &policy,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	}
}

// allowEgress opens the firewall of the router namespace (the calling
// thread's) from the named guest interface to the uplink.
func (h *host) allowEgress(guest string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: routerTable, Family: nftables.TableFamilyIPv4}
	forward := forwardChain(table)
	addRule(c, forward, clampMSS())
	addRule(c, forward, established, accept)
	addRule(c, forward, invalid, drop)
	addRule(c, forward, over(maxConnections), drop)
	outward := func(parts ...[]expr.Any) {
		addRule(c, forward, append([][]expr.Any{in(guest), out(upName)}, parts...)...)
	}
	for _, rule := range h.resolverRules() {
		outward(rule, accept)
	}
	outward(address(offsetDestination, h.uplinks), drop)
	for _, p := range h.allow {
		outward(address(offsetDestination, p), accept)
	}
	for _, p := range denied {
		outward(address(offsetDestination, p), drop)
	}
	outward(accept)

	postrouting := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	addRule(c, postrouting, out(upName), masquerade)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("open firewall: %w", err)
	}
	return nil
}

// resolverRules match questions to the resolvers.
func (h *host) resolverRules() [][]expr.Any {
	var rules [][]expr.Any
	for _, ip := range h.dns {
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			rules = append(rules, append(address(offsetDestination, single(ip)), port(proto, 53)...))
		}
	}
	return rules
}

func single(ip net.IP) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(ip.To4())), 32)
}
