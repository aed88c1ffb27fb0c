package firecracker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
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

// savedMachine is what a snapshot says of its machine.
type savedMachine struct {
	Format      int // of this structure
	Firecracker string
	HugePages   bool
	Balloon     bool
	MMDS        bool
	Limits      limits
	microvm.Saved
	StateSHA256 string // of sandbox.FileState
}

const machineFormat = 1

// limits are what can be changed in a machine that was loaded.
type limits struct {
	BalloonMiB          int64
	Disk, Receive, Send *fcapi.RateLimiter
}

func (b *box) limits() limits {
	c := &b.d.conf
	return limits{BalloonMiB: b.balloonMiB(), Disk: c.DiskRate, Receive: c.ReceiveRate, Send: c.SendRate}
}

// describe is what would be saved of a box, but for what its agent knows.
func (d *Driver) describe(b *box, version string) (s savedMachine, err error) {
	root, err := os.Stat(b.Spec.Rootfs)
	if err != nil {
		return s, fmt.Errorf("rootfs: %w", err)
	}
	var disks []os.FileInfo
	for _, p := range b.Spec.Disks {
		st, err := os.Stat(p)
		if err != nil {
			return s, fmt.Errorf("disk: %w", err)
		}
		disks = append(disks, st)
	}
	return savedMachine{
		Format: machineFormat, Firecracker: version, HugePages: d.conf.HugePages,
		Balloon: d.conf.Balloon, MMDS: d.conf.MMDS != nil, Limits: b.limits(),
		Saved: b.Describe(memoryMiB(b), root, disks),
	}, nil
}

// fits compares a saved machine with the one that is to take its place.
func (s *savedMachine) fits(now *savedMachine) error {
	return s.Fits(&now.Saved,
		microvm.Trait{What: "Firecracker", Was: s.Firecracker, Now: now.Firecracker},
		microvm.Trait{What: "huge pages", Was: s.HugePages, Now: now.HugePages},
		microvm.Trait{What: "balloon", Was: s.Balloon, Now: now.Balloon},
		microvm.Trait{What: "metadata", Was: s.MMDS, Now: now.MMDS})
}

// write writes the file.
func (s *savedMachine) write(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return microvm.WriteFile(path, b)
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
		return nil, nil, fmt.Errorf("%s: %w: it is not what was saved", path, microvm.ErrDamaged)
	}
	return s, state, nil
}

func parseMachine(b []byte) (*savedMachine, error) {
	s := &savedMachine{}
	if err := microvm.Decode(b, s); err != nil {
		return nil, err
	}
	if s.Format != machineFormat {
		return nil, fmt.Errorf("snapshot of format %d, this driver reads %d", s.Format, machineFormat)
	}
	if err := s.Check(); err != nil {
		return nil, err
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
		err = fmt.Errorf("%w: longer than %d bytes", microvm.ErrDamaged, most)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}
