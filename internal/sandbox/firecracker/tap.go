package firecracker

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// ownTAP lets a user, and group, of this number attach to a link's TAP device:
// Firecracker opens it itself, by name, when it has no privileges any more.
func ownTAP(l sandbox.Link, id uint32) error {
	f, err := microvm.OpenTAP(l)
	if err != nil {
		return err
	}
	fd := int(f.Fd())
	err = unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(id))
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETGROUP, int(id))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("give away TAP device %s in %s: %w", l.Interface, l.NetNS, err)
	}
	return nil
}
