package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// The inside of every lease.
const (
	guestName  = "eth0" // in the guest namespace
	routerName = "gw0"  // its other end, in the router namespace
	tapName    = "tap0" // in the router namespace
	upName     = "up0"  // in the router namespace, to the host
	linkMTU    = 1500
)

var (
	guestIP    = net.IPv4(172, 16, 0, 2).To4()
	gatewayIP  = net.IPv4(172, 16, 0, 1).To4()
	linkMask   = net.CIDRMask(30, 32)
	guestMAC   = net.HardwareAddr{0x06, 0x00, 0xac, 0x10, 0x00, 0x02}
	gatewayMAC = net.HardwareAddr{0x06, 0x00, 0xac, 0x10, 0x00, 0x01}
)

// ingressName is the router's interface towards the guest.
func ingressName(kind sandbox.LinkKind) string {
	if kind == sandbox.LinkTAP {
		return tapName
	}
	return routerName
}

// makeVeth links the two namespaces. When an end of a pair is set up while the
// other is, it can send at once; but the other learns of its carrier later,
// from a worker of the kernel's, and drops all until then. So the guest's end
// is first, the router's second, and then we wait for the guest's.
func makeVeth(ctx context.Context, router, guest string) error {
	peer, err := os.Open(guest)
	if err != nil {
		return err
	}
	defer peer.Close()
	return within(router, func(h *netlink.Handle) error {
		attrs := linkAttrs(routerName)
		attrs.HardwareAddr = gatewayMAC
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: guestName, PeerHardwareAddr: guestMAC,
			PeerNamespace: netlink.NsFd(peer.Fd()),
		}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth pair: %w", err)
		}
		return netns.Do(guest, func() error {
			inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return fmt.Errorf("open netlink: %w", err)
			}
			defer inside.Close()
			if err := setUpGuest(inside); err != nil {
				return err
			}
			if err := netns.Do(router, func() error { return setUpGateway(h, veth) }); err != nil {
				return err
			}
			return awaitCarrier(ctx, inside, guestName)
		})
	})
}

func setUpGuest(h *netlink.Handle) error {
	if err := hardenNamespace(); err != nil {
		return err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	eth, err := h.LinkByName(guestName)
	if err != nil {
		return fmt.Errorf("find %s: %w", guestName, err)
	}
	if err := setUp(h, eth, guestIP, linkMask); err != nil {
		return err
	}
	if err := h.NeighSet(neighbour(eth, gatewayIP, gatewayMAC)); err != nil {
		return fmt.Errorf("add neighbour %s: %w", gatewayIP, err)
	}
	return addDefaultRoute(h, eth, gatewayIP)
}

// makeTAP makes a persistent TAP device with one queue.
func makeTAP(router string) error {
	return within(router, func(h *netlink.Handle) error {
		tap := &netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: tapName},
			Mode:      netlink.TUNTAP_MODE_TAP,
			// As QEMU and Firecracker open it.
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
		}
		// The library makes it by ioctl, in the thread's namespace. For that it
		// has the device open: a process that starts meanwhile, anywhere in this
		// one, would hold a copy of the file until its exec, and keep the
		// device's only queue from whoever opens it next ("device or resource
		// busy").
		syscall.ForkLock.RLock()
		err := h.LinkAdd(tap)
		syscall.ForkLock.RUnlock()
		if err != nil {
			return fmt.Errorf("add %s (is the kernel module tun loaded?): %w", tapName, err)
		}
		link, err := h.LinkByName(tapName)
		if err != nil {
			return fmt.Errorf("find %s: %w", tapName, err)
		}
		// Always the same: guests that come out of a snapshot remember it.
		if err := h.LinkSetHardwareAddr(link, gatewayMAC); err != nil {
			return fmt.Errorf("set MAC of %s: %w", tapName, err)
		}
		return setUpGateway(h, link)
	})
}

// setUpGateway configures the router's interface towards the guest. The
// firewall stands before the interface is up.
func setUpGateway(h *netlink.Handle, link netlink.Link) error {
	if err := addFirewall(link.Attrs().Name); err != nil {
		return err
	}
	// So that one connection for each request runs out of ports later.
	if err := setSysctl("ipv4/ip_local_port_range", "1024 65535"); err != nil {
		return err
	}
	if err := setSysctl("ipv4/tcp_tw_reuse", "1"); err != nil {
		return err
	}
	if err := setUp(h, link, gatewayIP, linkMask); err != nil {
		return err
	}
	// No need to ask the guest, and no way for it to tell otherwise.
	if err := h.NeighSet(neighbour(link, guestIP, guestMAC)); err != nil {
		return fmt.Errorf("add neighbour %s: %w", guestIP, err)
	}
	return nil
}

// within runs fn in a namespace that was just made, after setting its
// sysctls, with a netlink handle of that namespace.
func within(path string, fn func(*netlink.Handle) error) error {
	return netns.Do(path, func() error {
		if err := hardenNamespace(); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		return fn(h)
	})
}

// hardenNamespace sets the sysctls of the thread's namespace.
func hardenNamespace() error {
	for name, value := range map[string]string{
		"ipv6/conf/all/disable_ipv6":     "1",
		"ipv6/conf/default/disable_ipv6": "1",
		"ipv4/conf/all/rp_filter":        "1",
		"ipv4/conf/default/rp_filter":    "1",
		"ipv4/conf/all/arp_ignore":       "1", // answer for the interface's own address only
		"ipv4/conf/all/send_redirects":   "0",
	} {
		if err := setSysctl(name, value); err != nil {
			return err
		}
	}
	return nil
}

// setSysctl sets net/<name> in the thread's namespace. A kernel without IPv6
// lacks its settings, and needs none.
func setSysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) && name[:4] == "ipv6" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set sysctl net/%s=%s: %w", name, value, err)
	}
	return nil
}

func linkAttrs(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = linkMTU
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // not one for each CPU
	return attrs
}

func setUp(h *netlink.Handle, link netlink.Link, ip net.IP, mask net.IPMask) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: mask}}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", addr, link.Attrs().Name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
	}
	return nil
}

func neighbour(link netlink.Link, ip net.IP, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V4,
		State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac,
	}
}

func addDefaultRoute(h *netlink.Handle, link netlink.Link, via net.IP) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: via}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route via %s: %w", via, err)
	}
	return nil
}

// removeLink removes an interface of the host. It is idempotent.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	var missing netlink.LinkNotFoundError
	if err == nil || errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("remove interface %s: %w", name, err)
}
