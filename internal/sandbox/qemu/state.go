package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// FileState is stateMagic, the length of a JSON object as 4 bytes in network
// byte order, the object, and the devices' state in QEMU's own format.

const stateMagic = "skep-qemu-state\n"

// Bounds of what is read.
const (
	maxStateHeader = 64 << 10
	maxDevices     = 16 << 20 // QEMU writes some kB
)

// savedState is what a snapshot says of its machine.
type savedState struct {
	Version int // of this structure
	QEMU    string
	Accel   Accel
	TSCKHz  int64 // of the host; the guest's clock counts by it
	microvm.Saved
	Bytes  int64  // of the devices' state
	SHA256 string // of the devices' state
}

const stateVersion = 1

// maxTSCDrift is by how much, as a part, the clocks of two hosts, or two
// measurements of one, may differ: NTP corrects twice as much.
const maxTSCDrift = 0.00025

// writeState writes the whole file. The token is in it: it is for root only.
func writeState(path string, s savedState, devices []byte) error {
	s.Version = stateVersion
	s.Bytes = int64(len(devices))
	sum := sha256.Sum256(devices)
	s.SHA256 = hex.EncodeToString(sum[:])
	head, err := json.Marshal(s)
	if err != nil {
		return err
	}
	b := append([]byte(stateMagic), binary.BigEndian.AppendUint32(nil, uint32(len(head)))...)
	return microvm.WriteFile(path, append(append(b, head...), devices...))
}

// openState checks a state file. The file that it returns is at the devices'
// state.
func openState(path string) (*savedState, *os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	s, err := readState(f)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return s, f, nil
}

func readState(f io.ReadSeeker) (*savedState, error) {
	damaged := func(what string) (*savedState, error) { return nil, fmt.Errorf("%w: %s", microvm.ErrDamaged, what) }
	var fixed [len(stateMagic) + 4]byte
	if _, err := io.ReadFull(f, fixed[:]); err != nil || !bytes.HasPrefix(fixed[:], []byte(stateMagic)) {
		return damaged("not a state of this driver")
	}
	n := binary.BigEndian.Uint32(fixed[len(stateMagic):])
	if n > maxStateHeader {
		return damaged("its head is too long")
	}
	head := make([]byte, n)
	if _, err := io.ReadFull(f, head); err != nil {
		return damaged("it is cut off")
	}
	s := &savedState{}
	if err := microvm.Decode(head, s); err != nil {
		return nil, err
	}
	switch {
	case s.Version != stateVersion:
		return nil, fmt.Errorf("snapshot of version %d, this driver reads %d", s.Version, stateVersion)
	case s.Bytes <= 0 || s.Bytes > maxDevices:
		return damaged("its length")
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	start := int64(len(fixed)) + int64(n)
	devices, err := io.ReadAll(io.LimitReader(f, s.Bytes+1))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(devices)
	if int64(len(devices)) != s.Bytes || hex.EncodeToString(sum[:]) != s.SHA256 {
		return damaged("the devices' state is not what was saved")
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return nil, err
	}
	return s, nil
}

// fits compares a saved state with the machine that is to take it.
func (s *savedState) fits(now *savedState) error {
	err := s.Fits(&now.Saved,
		microvm.Trait{What: "QEMU", Was: s.QEMU, Now: now.QEMU},
		microvm.Trait{What: "the processor's provider", Was: s.Accel, Now: now.Accel})
	if err != nil {
		return err
	}
	if d := float64(s.TSCKHz-now.TSCKHz) / float64(max(now.TSCKHz, 1)); s.TSCKHz != now.TSCKHz && (d > maxTSCDrift || d < -maxTSCDrift) {
		return fmt.Errorf("the snapshot does not fit: the processor's clock had %d kHz and has %d", s.TSCKHz, now.TSCKHz)
	}
	return nil
}

// describe is what would be saved of a machine, but for what its agent knows.
func (b *box) describe(version string, m machine, files *machineFiles) (savedState, error) {
	root, disks, err := files.infos()
	if err != nil {
		return savedState{}, err
	}
	return savedState{QEMU: version, Accel: m.accel, TSCKHz: m.tscKHz, Saved: b.Describe(m.memoryMiB, root, disks)}, nil
}
