package guest

import (
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rtentry is the kernel's struct rtentry (linux/route.h), which x/sys lacks.
type rtentry struct {
	_       uint64 // rt_pad1
	dst     unix.RawSockaddrInet4
	gateway unix.RawSockaddrInet4
	genmask unix.RawSockaddrInet4
	flags   uint16
	_       int16   // rt_pad2
	_       uint64  // rt_pad3
	_       uintptr // rt_pad4
	_       int16   // rt_metric
	_       uintptr // rt_dev
	_       uint64  // rt_mtu
	_       uint64  // rt_window
	_       uint16  // rt_irtt
}

// From linux/route.h.
const (
	rtfUp      = 0x1
	rtfGateway = 0x2
)

func addDefaultRoute(s int, gateway net.IP) error {
	r := rtentry{flags: rtfUp | rtfGateway}
	r.dst.Family, r.genmask.Family, r.gateway.Family = unix.AF_INET, unix.AF_INET, unix.AF_INET
	copy(r.gateway.Addr[:], gateway.To4())
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return fmt.Errorf("default route by %s: %w", gateway, errno)
	}
	return nil
}
