package microvm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// OpenTAP opens a link's TAP device, so that a monitor needs neither its
// namespace nor any privilege.
func OpenTAP(l sandbox.Link) (f *os.File, err error) {
	err = netns.Do(l.NetNS, func() error {
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
			return errors.Join(err, unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), l.Interface)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open TAP device %s in %s: %w", l.Interface, l.NetNS, err)
	}
	return f, nil
}
