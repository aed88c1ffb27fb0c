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

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/sandbox"
)

// FileState is stateMagic, the length of a JSON object as 4 bytes in network
// byte order, the object, and the devices' state in QEMU's own format.

const stateMagic = "skep-qemu-state\n"

// Bounds of what is read.
const (
	maxStateHeader = 64 << 10
	maxDevices     = 16 << 20 // QEMU writes some kB
)

// errDamaged says that a snapshot is not what was saved.
var errDamaged = errors.New("damaged snapshot")

// savedState is what a restored machine must have in common with the saved
// one, and what the host must know to talk to it.
type savedState struct {
	Version   int // of this structure
	QEMU      string
	Accel     Accel
	MemoryMiB int64
	CPUs      int64
	TSCKHz    int64 // of the host; the guest's clock counts by it
	MAC       string
	Address   string
	Gateway   string
	MTU       int
	RootBytes int64
	Disks     []savedDisk
	Token     []byte // that the agent expects
	Marks     agent.Marks
	Bytes     int64  // of the devices' state
	SHA256    string // of the devices' state
}

const stateVersion = 1

// savedDisk is what a disk was when the snapshot was made.
type savedDisk struct {
	Path     string
	Bytes    int64
	Modified int64 // ns
}

// maxTSCDrift is by how much, as a part, the clocks of two hosts, or two
// measurements of one, may differ: NTP corrects twice as much.
const maxTSCDrift = 0.00025

func statDisk(path string, f *os.File) (savedDisk, error) {
	st, err := f.Stat()
	if err != nil {
		return savedDisk{}, fmt.Errorf("disk: %w", err)
	}
	return savedDisk{Path: path, Bytes: st.Size(), Modified: st.ModTime().UnixNano()}, nil
}

// writeState writes the whole file. The token is in it: it is for root only.
func writeState(path string, s savedState, devices []byte) (err error) {
	s.Version = stateVersion
	s.Bytes = int64(len(devices))
	sum := sha256.Sum256(devices)
	s.SHA256 = hex.EncodeToString(sum[:])
	head, err := json.Marshal(s)
	if err != nil {
		return err
	}
	b := append([]byte(stateMagic), binary.BigEndian.AppendUint32(nil, uint32(len(head)))...)
	b = append(append(b, head...), devices...)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
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
	damaged := func(what string) (*savedState, error) { return nil, fmt.Errorf("%w: %s", errDamaged, what) }
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
	d := json.NewDecoder(bytes.NewReader(head))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return damaged("its head: " + err.Error())
	}
	switch {
	case s.Version != stateVersion:
		return nil, fmt.Errorf("snapshot of version %d, this driver reads %d", s.Version, stateVersion)
	case s.Bytes <= 0 || s.Bytes > maxDevices:
		return damaged("its length")
	case len(s.Token) != len(agent.Token{}):
		return damaged("its token")
	case len(s.Disks) > agent.MaxDisks || s.MemoryMiB <= 0 || s.CPUs <= 0:
		return damaged("its head's values")
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
	for _, c := range []struct {
		what      string
		was, want any
	}{
		{"QEMU", s.QEMU, now.QEMU},
		{"the processor's provider", s.Accel, now.Accel},
		{"memory (MiB)", s.MemoryMiB, now.MemoryMiB},
		{"processors", s.CPUs, now.CPUs},
		{"MAC address", s.MAC, now.MAC},
		{"address", s.Address, now.Address},
		{"gateway", s.Gateway, now.Gateway},
		{"MTU", s.MTU, now.MTU},
		{"the root file system's size", s.RootBytes, now.RootBytes},
		{"the number of disks", len(s.Disks), len(now.Disks)},
	} {
		if c.was != c.want {
			return fmt.Errorf("the snapshot does not fit: %s was %v and is %v", c.what, c.was, c.want)
		}
	}
	if d := float64(s.TSCKHz-now.TSCKHz) / float64(max(now.TSCKHz, 1)); s.TSCKHz != now.TSCKHz && (d > maxTSCDrift || d < -maxTSCDrift) {
		return fmt.Errorf("the snapshot does not fit: the processor's clock had %d kHz and has %d", s.TSCKHz, now.TSCKHz)
	}
	return nil
}

// newDisks says if any disk is not what it was.
func (s *savedState) newDisks(now *savedState) bool {
	for i := range s.Disks {
		if s.Disks[i] != now.Disks[i] {
			return true
		}
	}
	return false
}

// describe is what would be saved of a machine, but for what its agent knows.
func (m machine) describe(version string, spec *sandbox.Spec) savedState {
	return savedState{
		QEMU: version, Accel: m.accel, MemoryMiB: m.memoryMiB, CPUs: m.cpus, TSCKHz: m.tscKHz,
		MAC: m.mac.String(), Address: spec.Link.Address.String(), Gateway: spec.Link.Gateway.String(), MTU: spec.Link.MTU,
	}
}
