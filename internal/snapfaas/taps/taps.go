// Package taps makes TAP devices on a bridge, tap0, tap1 and so on, as
// SnapFaaS's setup script does. Skep's own micro-VMs do not need them: each has
// a device in a network namespace of its own.
package taps

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Max bounds the number of devices: a bridge has 1024 ports.
const Max = 1000

// name of a device.
func name(i int) string { return fmt.Sprintf("tap%d", i) }

// Setup makes the devices tap0 to tap<n-1>, up and on the bridge; "" is no
// bridge. It is idempotent: devices that are there are put in order. If one
// cannot be made, those that were new are removed again.
func Setup(n int, bridge string) (err error) {
	if n < 1 || n > Max {
		return fmt.Errorf("number of TAP devices: %d is not between 1 and %d", n, Max)
	}
	var master netlink.Link
	if bridge != "" {
		if master, err = findBridge(bridge); err != nil {
			return err
		}
	}
	var made []netlink.Link
	defer func() {
		if err != nil {
			for _, l := range made {
				err = errors.Join(err, netlink.LinkDel(l))
			}
		}
	}()
	for i := range n {
		l, isNew, err := ensure(name(i))
		if isNew {
			made = append(made, l)
		}
		if err == nil && master != nil {
			err = netlink.LinkSetMaster(l, master)
		}
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("TAP device %s: %w", name(i), explain(err))
		}
	}
	return nil
}

func findBridge(bridge string) (netlink.Link, error) {
	l, err := netlink.LinkByName(bridge)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("there is no bridge %s: start docker, which makes docker0, or make one (ip link add %s type bridge), or name another with --bridge", bridge, bridge)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", bridge, err)
	}
	if l.Type() != "bridge" {
		return nil, fmt.Errorf("%s is a %s, not a bridge", bridge, l.Type())
	}
	return l, nil
}

// ensure finds or makes a device.
func ensure(name string) (l netlink.Link, isNew bool, err error) {
	l, err = netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case err == nil && !isTAP(l):
		return nil, false, fmt.Errorf("the name belongs to a %s", l.Type())
	case err == nil:
		return l, false, nil
	case !errors.As(err, &missing):
		return nil, false, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, false, err
	}
	for _, f := range tap.Fds { // it stays without them
		_ = f.Close()
	}
	l, err = netlink.LinkByName(name)
	return l, err == nil, err
}

func isTAP(l netlink.Link) bool {
	t, ok := l.(*netlink.Tuntap)
	return ok && t.Mode == netlink.TUNTAP_MODE_TAP
}

// Remove removes tap0 to tap<n-1>. What is not there is none of its business;
// neither is a device of the name that is no TAP device.
func Remove(n int) error {
	if n < 1 || n > Max {
		return fmt.Errorf("number of TAP devices: %d is not between 1 and %d", n, Max)
	}
	var errs []error
	for i := range n {
		l, err := netlink.LinkByName(name(i))
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			continue
		}
		if err == nil && !isTAP(l) {
			err = fmt.Errorf("it is a %s and stays", l.Type())
		} else if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("TAP device %s: %w", name(i), explain(err)))
		}
	}
	return errors.Join(errs...)
}

// explain says what to do about an error.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (try sudo)", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w (is /dev/net/tun there? modprobe tun)", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w (a VM still uses it)", err)
	}
	return err
}
