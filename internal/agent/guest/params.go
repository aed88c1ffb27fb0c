package guest

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
)

// params is what the agent must know before the host can talk to it. Nothing
// of it is secret.
type params struct {
	address net.IPNet
	gateway net.IP
	mtu     int
	disks   int  // besides the root's
	probe   bool // only show that the machine boots
	// timerKHz is the frequency of the processors' timer, 0 if the host does not know.
	timerKHz uint64
}

func readParams(path string) (params, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return params{}, err
	}
	return parseParams(string(b))
}

// parseParams reads skep.address=A/N, skep.gateway=A, skep.mtu=N, skep.disks=N
// and skep.timer=kHz from a kernel command line.
func parseParams(cmdline string) (params, error) {
	p := params{mtu: 1500}
	for _, word := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "skep.address":
			ip, n, err := net.ParseCIDR(value)
			if err != nil || ip.To4() == nil {
				return p, fmt.Errorf("kernel command line: %s is not an IPv4 address and mask", word)
			}
			p.address = net.IPNet{IP: ip.To4(), Mask: n.Mask}
		case "skep.gateway":
			if p.gateway = net.ParseIP(value).To4(); p.gateway == nil {
				return p, fmt.Errorf("kernel command line: %s is not an IPv4 address", word)
			}
		case "skep.probe":
			p.probe = true
		case "skep.timer":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return p, fmt.Errorf("kernel command line: %s is not a frequency in kHz", word)
			}
			p.timerKHz = n
		case "skep.disks":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || n > agent.MaxDisks {
				return p, fmt.Errorf("kernel command line: %s is not a number of disks", word)
			}
			p.disks = n
		case "skep.mtu":
			n, err := strconv.Atoi(value)
			if err != nil || n < 576 || n > 65535 {
				return p, fmt.Errorf("kernel command line: %s is not an MTU", word)
			}
			p.mtu = n
		}
	}
	if p.probe {
		return p, nil
	}
	if p.address.IP == nil || p.gateway == nil {
		return p, fmt.Errorf("kernel command line: skep.address and skep.gateway must be set")
	}
	return p, nil
}

const ethernet = "eth0"

// setUpNetwork uses the classic ioctls: a netlink library would double the
// agent's size, and with it the time an emulated machine needs to start it.
func setUpNetwork(p params) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // a socket that was never written to
	if err := ifUp(s, "lo"); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	set := func(what string, request uint, fill func(*unix.Ifreq) error) error {
		r, err := unix.NewIfreq(ethernet)
		if err == nil {
			err = fill(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(s, request, r)
		}
		if err != nil {
			return fmt.Errorf("%s: set %s: %w", ethernet, what, err)
		}
		return nil
	}
	inet := func(ip []byte) func(*unix.Ifreq) error {
		return func(r *unix.Ifreq) error { return r.SetInet4Addr(ip) }
	}
	if err := set("mtu", unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(uint32(p.mtu)); return nil }); err != nil {
		return err
	}
	if err := set("address", unix.SIOCSIFADDR, inet(p.address.IP.To4())); err != nil {
		return err
	}
	if err := set("mask", unix.SIOCSIFNETMASK, inet(p.address.Mask)); err != nil {
		return err
	}
	if err := ifUp(s, ethernet); err != nil {
		return fmt.Errorf("%s: %w", ethernet, err)
	}
	return addDefaultRoute(s, p.gateway)
}

func ifUp(s int, name string) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r); err != nil {
		return err
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}
