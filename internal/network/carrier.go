package network

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// carrierTimeout is for what takes the kernel milliseconds.
const carrierTimeout = 5 * time.Second

// WaitCarrier waits until packets sent to the sandbox leave the router. A veth
// link is ready when it is acquired. A TAP device is so a moment after the
// hypervisor has opened it: before, the kernel drops what is sent, and TCP
// repeats a first packet after one second only. So whoever dials a micro-VM
// within milliseconds of its start or restore waits here first.
func WaitCarrier(ctx context.Context, link sandbox.Link) error {
	if link.DialNS != link.NetNS {
		return nil // veth
	}
	return netns.Do(link.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		return awaitCarrier(ctx, h, link.Interface)
	})
}

// awaitCarrier waits until an interface that is up, and connected, can send.
func awaitCarrier(ctx context.Context, h *netlink.Handle, name string) error {
	ctx, cancel := context.WithTimeout(ctx, carrierTimeout)
	defer cancel()
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		// To be asked makes newer kernels (6.14) see to it right now, which
		// otherwise a worker does.
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to have a carrier (it is %s): %w", name, link.Attrs().OperState, ctx.Err())
		}
	}
}
