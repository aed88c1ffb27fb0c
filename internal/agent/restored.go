package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Sizes of what a restored guest is given.
const (
	EntropySize   = 64 // bytes
	MachineIDSize = 16 // bytes
)

// Restored is what tells a restored guest from its siblings.
type Restored struct {
	// Token replaces the one that the snapshot has.
	Token Token
	// Entropy goes into the kernel's random generator, and MachineID into
	// /etc/machine-id. Both must be fresh.
	Entropy   [EntropySize]byte
	MachineID [MachineIDSize]byte
	// Hostname is empty to keep the old one.
	Hostname string
	// NewDisks says that what is behind the disks, but for the root's and those
	// that are mounted, is not what it was: the guest must look again.
	NewDisks bool
	// Wall is the wall clock's time; Resume fills it in as late as it can.
	Wall time.Time
}

// restoredSize is that of everything but the host name.
const restoredSize = tokenSize + EntropySize + MachineIDSize + 8 + 1 + 1

// encode writes the fields in order, numbers in network byte order.
func (r *Restored) encode(wall time.Time) ([]byte, error) {
	if len(r.Hostname) > maxHostname || hasControl(r.Hostname) {
		return nil, fmt.Errorf("hostname: longer than %d bytes, or holds control characters", maxHostname)
	}
	b := make([]byte, 0, restoredSize+len(r.Hostname))
	b = append(b, r.Token[:]...)
	b = append(b, r.Entropy[:]...)
	b = append(b, r.MachineID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(wall.UnixNano()))
	var disks byte
	if r.NewDisks {
		disks = 1
	}
	b = append(b, disks, byte(len(r.Hostname)))
	return append(b, r.Hostname...), nil
}

// parseRestored reads what encode made.
func parseRestored(b []byte) (*Restored, error) {
	if len(b) < restoredSize || len(b) != restoredSize+int(b[restoredSize-1]) {
		return nil, fmt.Errorf("%d bytes", len(b))
	}
	r := &Restored{}
	b = b[copy(r.Token[:], b):]
	b = b[copy(r.Entropy[:], b):]
	b = b[copy(r.MachineID[:], b):]
	r.Wall = time.Unix(0, int64(binary.BigEndian.Uint64(b)))
	r.NewDisks = b[8] != 0
	r.Hostname = string(b[10:])
	if len(r.Hostname) > maxHostname || hasControl(r.Hostname) {
		return nil, errors.New("host name out of bounds")
	}
	return r, nil
}
