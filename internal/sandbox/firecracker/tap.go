package firecracker

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// ownTAP lets a user, and group, of this number attach to a link's TAP device:
// Firecracker opens it itself, by name, when it has no privileges any more.
func ownTAP(l sandbox.Link, id uint32) error {
	err := netns.Do(l.NetNS, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd) //nolint:errcheck // the device is persistent
		req, err := unix.NewIfreq(l.Interface)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(id)); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, unix.TUNSETGROUP, int(id))
	})
	if err != nil {
		return fmt.Errorf("give away TAP device %s in %s: %w", l.Interface, l.NetNS, err)
	}
	return nil
}
