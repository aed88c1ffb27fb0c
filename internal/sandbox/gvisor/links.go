package gvisor

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	gvboot "gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/config"
)

// socketBuffer is what gVisor gives its packet sockets each way, in bytes.
const socketBuffer = 4 << 20

// ethPAll is ETH_P_ALL in network byte order.
const ethPAll = 0x0300

// takeLinks does for a sandbox that will be restored what gVisor's library
// does in the restore itself, too late for a sandbox that is prepared ahead: it
// describes the interfaces of the current network namespace, with a packet
// socket for each, and takes their addresses away. The caller closes the
// files.
func takeLinks(conf *config.Config) (_ *gvboot.CreateLinksAndRoutesArgs, err error) {
	args := &gvboot.CreateLinksAndRoutesArgs{IsRestore: true}
	defer func() {
		if err != nil {
			closeAll(args.Files)
		}
	}()
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		if link.Attrs().Flags&net.FlagUp == 0 {
			continue
		}
		if err := takeLink(conf, link, args); err != nil {
			return nil, fmt.Errorf("link %s: %w", link.Attrs().Name, err)
		}
	}
	return args, nil
}

func takeLink(conf *config.Config, link netlink.Link, args *gvboot.CreateLinksAndRoutesArgs) error {
	name, index := link.Attrs().Name, link.Attrs().Index
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4) // the sandbox has no IPv6
	if err != nil {
		return err
	}
	var prefixes []gvboot.IPWithPrefix
	for _, a := range addrs {
		ones, _ := a.Mask.Size()
		prefixes = append(prefixes, gvboot.IPWithPrefix{Address: a.IP, PrefixLen: ones})
	}
	if link.Attrs().Flags&net.FlagLoopback != 0 {
		l := gvboot.LoopbackLink{Name: name, Addresses: prefixes, GVisorGRO: conf.GVisorGRO}
		for _, a := range addrs {
			l.Routes = append(l.Routes, gvboot.Route{Destination: net.IPNet{IP: a.IP.Mask(a.Mask), Mask: a.Mask}})
		}
		args.LoopbackLinks = append(args.LoopbackLinks, l)
		return nil
	}
	if len(addrs) == 0 {
		return nil
	}
	l := gvboot.FDBasedLink{
		Name: name, MTU: link.Attrs().MTU, LinkAddress: link.Attrs().HardwareAddr, Addresses: prefixes,
		TXChecksumOffload: conf.TXChecksumOffload, RXChecksumOffload: conf.RXChecksumOffload, GVisorGRO: conf.GVisorGRO,
		NumChannels: 1, ProcessorsPerChannel: conf.NetworkProcessorsPerChannel,
		QDisc: conf.QDisc, TBFRate: conf.TBFRate, TBFBurst: uint32(conf.TBFBurst),
	}
	if err := takeRoutes(link, &l, args); err != nil {
		return err
	}
	neighbours, err := netlink.NeighList(index, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, n := range neighbours {
		if n.State == netlink.NUD_PERMANENT {
			l.Neighbors = append(l.Neighbors, gvboot.Neighbor{IP: n.IP, HardwareAddr: n.HardwareAddr})
		}
	}
	if conf.HostGSO {
		l.GSOMaxSize = link.Attrs().GSOMaxSize
	} else if conf.GVisorGSO {
		l.GSOMaxSize, l.GVisorGSOEnabled = stack.GVisorGSOMaxSize, true
	}
	f, err := packetSocket(index, conf.HostGSO)
	if err != nil {
		return err
	}
	args.Files = append(args.Files, f)
	args.FDBasedLinks = append(args.FDBasedLinks, l)
	for _, a := range addrs {
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("take address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// takeRoutes describes the routes through a link.
func takeRoutes(link netlink.Link, l *gvboot.FDBasedLink, args *gvboot.CreateLinksAndRoutesArgs) error {
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, r := range routes {
		mtu := uint32(r.MTU) //nolint:gosec // from the kernel
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			all := net.IPNet{IP: net.IPv4zero, Mask: net.IPMask(net.IPv4zero)}
			args.Defaultv4Gateway = gvboot.DefaultRoute{Name: l.Name, Route: gvboot.Route{Destination: all, Gateway: r.Gw, MTU: mtu}}
			continue
		}
		l.Routes = append(l.Routes, gvboot.Route{Destination: *r.Dst, Gateway: r.Gw, MTU: mtu})
	}
	return nil
}

// packetSocket opens a socket that gets and sends the frames of an interface.
// With gso, as veths can, both may be larger than a frame.
func packetSocket(index int, gso bool) (_ *os.File, err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // with a protocol, bind would be slow
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "packets")
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ethPAll, Ifindex: index}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if gso {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return nil, os.NewSyscallError("setsockopt PACKET_VNET_HDR", err)
		}
	}
	for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer); err != nil {
			return nil, os.NewSyscallError("setsockopt buffer size", err)
		}
	}
	return f, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
