package firecracker

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// fileMachine is a snapshot's third file: what the driver must know of the
// machine. sandbox.FileState is Firecracker's own.
const fileMachine = "machine"

// Bounds of what is read.
const (
	maxMachine = 64 << 10
	maxState   = 64 << 20 // Firecracker writes some 100 kB
)

// errDamaged says that a snapshot is not what was saved.
var errDamaged = errors.New("damaged snapshot")

// savedMachine is what a restored machine must have in common with the saved
// one, and what the host must know to talk to it.
type savedMachine struct {
	Format      int // of this structure
	Firecracker string
	MemoryMiB   int64
	CPUs        int64
	HugePages   bool
	MAC         string
	Address     string
	Gateway     string
	MTU         int
	RootBytes   int64
	Disks       []savedDisk
	Token       []byte // that the agent expects
	Marks       agent.Marks
	StateSHA256 string // of sandbox.FileState
}

const machineFormat = 1

// savedDisk is what a disk was when the snapshot was made.
type savedDisk struct {
	Path     string
	Bytes    int64
	Modified int64 // ns
}

// describe is what would be saved of a box, but for what its agent knows.
func (d *Driver) describe(b *box, version string) (savedMachine, error) {
	l := b.Spec.Link
	s := savedMachine{
		Format: machineFormat, Firecracker: version, MemoryMiB: memoryMiB(b), CPUs: microvm.VCPUs(b.Resources.CPUMillis), HugePages: d.conf.HugePages,
		MAC: l.MAC.String(), Address: l.Address.String(), Gateway: l.Gateway.String(), MTU: l.MTU,
	}
	root, err := os.Stat(b.Spec.Rootfs)
	if err != nil {
		return s, fmt.Errorf("rootfs: %w", err)
	}
	s.RootBytes = root.Size()
	for _, p := range b.Spec.Disks {
		st, err := os.Stat(p)
		if err != nil {
			return s, fmt.Errorf("disk: %w", err)
		}
		s.Disks = append(s.Disks, savedDisk{Path: p, Bytes: st.Size(), Modified: st.ModTime().UnixNano()})
	}
	return s, nil
}

// fits compares a saved machine with the one that is to take its place.
func (s *savedMachine) fits(now *savedMachine) error {
	for _, c := range []struct {
		what      string
		was, want any
	}{
		{"Firecracker", s.Firecracker, now.Firecracker},
		{"memory (MiB)", s.MemoryMiB, now.MemoryMiB},
		{"processors", s.CPUs, now.CPUs},
		{"huge pages", s.HugePages, now.HugePages},
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
	return nil
}

// newDisks says if any disk is not what it was.
func (s *savedMachine) newDisks(now *savedMachine) bool {
	for i := range s.Disks {
		if s.Disks[i] != now.Disks[i] {
			return true
		}
	}
	return false
}

// write writes the file. The agent's token is in it: it is for root only.
func (s *savedMachine) write(path string) (err error) {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
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

// readMachine reads and checks a snapshot's files, but for the memory. It
// returns Firecracker's state, too.
func readMachine(i *sandbox.Image) (*savedMachine, []byte, error) {
	path := i.File(fileMachine)
	b, err := readBounded(path, maxMachine)
	if err != nil {
		return nil, nil, err
	}
	s, err := parseMachine(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	path = i.File(sandbox.FileState)
	state, err := readBounded(path, maxState)
	if err != nil {
		return nil, nil, err
	}
	if sum := sha256.Sum256(state); hex.EncodeToString(sum[:]) != s.StateSHA256 {
		return nil, nil, fmt.Errorf("%s: %w: it is not what was saved", path, errDamaged)
	}
	return s, state, nil
}

func parseMachine(b []byte) (*savedMachine, error) {
	s := &savedMachine{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	switch {
	case s.Format != machineFormat:
		return nil, fmt.Errorf("snapshot of format %d, this driver reads %d", s.Format, machineFormat)
	case len(s.Token) != len(agent.Token{}), len(s.Disks) > agent.MaxDisks, s.MemoryMiB <= 0, s.CPUs <= 0:
		return nil, fmt.Errorf("%w: its values are out of bounds", errDamaged)
	}
	return s, nil
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%w: longer than %d bytes", errDamaged, most)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}
