package qemu

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// openTAP opens a link's TAP device, so that QEMU needs neither its namespace
// nor any privilege.
func openTAP(l sandbox.Link) (*os.File, error) {
	var f *os.File
	err := netns.Do(l.NetNS, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(l.Interface)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return joinClose(err, fd)
		}
		f = os.NewFile(uintptr(fd), l.Interface)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open TAP device %s in %s: %w", l.Interface, l.NetNS, err)
	}
	return f, nil
}

func joinClose(err error, fd int) error {
	_ = unix.Close(fd)
	return err
}
