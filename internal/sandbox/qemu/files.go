package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// machineFiles are what a machine is given open. All may be nil.
type machineFiles struct {
	root, tap, state *os.File
	disks            []*os.File
}

// openFiles opens what a sandbox's machine needs.
func openFiles(spec *sandbox.Spec) (f *machineFiles, err error) {
	f = &machineFiles{}
	defer func() {
		if err != nil {
			f.close()
			f = nil
		}
	}()
	if f.tap, err = microvm.OpenTAP(spec.Link); err != nil {
		return f, err
	}
	if f.root, err = os.Open(spec.Rootfs); err != nil {
		return f, fmt.Errorf("rootfs: %w", err)
	}
	for _, path := range spec.Disks {
		d, err := os.Open(path)
		if err != nil {
			return f, fmt.Errorf("disk: %w", err)
		}
		f.disks = append(f.disks, d)
	}
	return f, nil
}

// close closes the host's ends, but not state, which is somebody else's.
func (f *machineFiles) close() {
	for _, file := range append([]*os.File{f.root, f.tap}, f.disks...) {
		if file != nil {
			_ = file.Close()
		}
	}
}

// infos describes the disks' files.
func (f *machineFiles) infos() (root os.FileInfo, disks []os.FileInfo, err error) {
	if root, err = f.root.Stat(); err != nil {
		return nil, nil, fmt.Errorf("rootfs: %w", err)
	}
	for _, d := range f.disks {
		info, err := d.Stat()
		if err != nil {
			return nil, nil, fmt.Errorf("disk: %w", err)
		}
		disks = append(disks, info)
	}
	return root, disks, nil
}

// start starts QEMU in a cgroup. memory is that of the guest.
func (d *Driver) start(ctx context.Context, m machine, f *machineFiles, memory *os.File, g *cgroup.Group) (*vm, error) {
	var files []*os.File
	give := func(f *os.File) int {
		if f == nil {
			return 0
		}
		files = append(files, f)
		return len(files) + 2 // after the standard files
	}
	var ours [2]net.Conn
	var theirs [2]*os.File
	var err error
	for i := range ours {
		if ours[i], theirs[i], err = socketPair(); err != nil {
			if i > 0 {
				err = errors.Join(err, ours[0].Close(), theirs[0].Close())
			}
			return nil, err
		}
	}
	m.qmpFD, m.consoleFD = give(theirs[0]), give(theirs[1])
	m.rootFD, m.tapFD, m.stateFD = give(f.root), give(f.tap), give(f.state)
	for _, d := range f.disks {
		m.diskFDs = append(m.diskFDs, give(d))
	}
	if !m.incoming {
		for path, fd := range map[string]*int{m.kernel: &m.kernelFD, m.initrd: &m.initrdFD} {
			f, err := os.Open(path)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("cache: %w", err),
					ours[0].Close(), ours[1].Close(), theirs[0].Close(), theirs[1].Close())
			}
			defer f.Close() //nolint:errcheck // QEMU has it
			*fd = give(f)
		}
	}
	return startVM(ctx, d.program.Path, m, memory, files, ours, theirs, g)
}
