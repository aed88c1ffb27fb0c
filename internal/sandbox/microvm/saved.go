package microvm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/skep-dev/skep/internal/agent"
)

// ErrDamaged says that a snapshot is not what was saved.
var ErrDamaged = errors.New("damaged snapshot")

// Saved is what a snapshot says of its machine, whatever runs it: what a
// restored one must have in common with it, and what the host must know to talk
// to that.
type Saved struct {
	MemoryMiB int64
	CPUs      int64
	MAC       string
	Address   string
	Gateway   string
	MTU       int
	RootBytes int64
	Disks     []SavedDisk
	Token     []byte // that the agent expects
	Marks     agent.Marks
}

// Describe is what would be saved of a machine, but for what its agent knows.
// root and disks are of the spec's Rootfs and Disks.
func (b *Box) Describe(memoryMiB int64, root os.FileInfo, disks []os.FileInfo) Saved {
	l := b.Spec.Link
	s := Saved{
		MemoryMiB: memoryMiB, CPUs: VCPUs(b.Resources.CPUMillis),
		MAC: l.MAC.String(), Address: l.Address.String(), Gateway: l.Gateway.String(), MTU: l.MTU,
		RootBytes: root.Size(),
	}
	for i, d := range disks {
		s.Disks = append(s.Disks, SavedDisk{Path: b.Spec.Disks[i], Bytes: d.Size(), Modified: d.ModTime().UnixNano()})
	}
	s.Disks = b.Mounted(s.Disks)
	return s
}

// Check refuses values that no Describe returns.
func (s *Saved) Check() error {
	if len(s.Token) != len(agent.Token{}) || len(s.Disks) > agent.MaxDisks || s.MemoryMiB <= 0 || s.CPUs <= 0 {
		return fmt.Errorf("%w: its values are out of bounds", ErrDamaged)
	}
	return nil
}

// Trait is something in which a saved machine and the one that is to take its
// place must be the same. Its values are comparable.
type Trait struct {
	What     string
	Was, Now any
}

// Fits compares a saved machine with the one that is to take its place, and
// what the driver has to add.
func (s *Saved) Fits(now *Saved, more ...Trait) error {
	for _, t := range append(more,
		Trait{"memory (MiB)", s.MemoryMiB, now.MemoryMiB},
		Trait{"processors", s.CPUs, now.CPUs},
		Trait{"MAC address", s.MAC, now.MAC},
		Trait{"address", s.Address, now.Address},
		Trait{"gateway", s.Gateway, now.Gateway},
		Trait{"MTU", s.MTU, now.MTU},
		Trait{"the root file system's size", s.RootBytes, now.RootBytes},
		Trait{"the number of disks", len(s.Disks), len(now.Disks)},
	) {
		if t.Was != t.Now {
			return fmt.Errorf("the snapshot does not fit: %s was %v and is %v", t.What, t.Was, t.Now)
		}
	}
	return nil
}

// Decode reads a JSON object that a driver wrote.
func Decode(b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// WriteFile writes a file that is not there yet, down to the disk. An agent's
// token may be in it: it is for root only.
func WriteFile(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}
