package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

var _ sandbox.Snapshotter = (*Driver)(nil)

// restoreModes are the ways to restore, the driver's own choice first: without
// a working set it is RestoreMap.
var restoreModes = []sandbox.RestoreMode{sandbox.RestoreHint, sandbox.RestoreMap, sandbox.RestoreEager, sandbox.RestorePager}

// image is the memory that a restored machine began with.
type image struct {
	files  []*os.File // one a layer, newest first
	layers []pager.Layer
	source *pager.Layered // all layers as one
	ram    *ram           // once QEMU runs
	state  *savedState
	// paging serves the memory in place of a mapping of the base; else nil.
	paging     *paging
	workingSet *pager.WorkingSet // that paging uses, or nil
	// newDisks: the disks are not the saved ones.
	newDisks bool
}

// openImage opens the layers of the memory.
func openImage(i sandbox.Image, size int64) (_ *image, err error) {
	img := &image{}
	defer func() {
		if err != nil {
			err = errors.Join(err, img.close(context.Background())) // it serves nobody
		}
	}()
	for _, dir := range i.Dirs {
		f, err := os.Open(filepath.Join(dir, sandbox.FileMemory))
		if err != nil {
			return nil, err
		}
		img.files = append(img.files, f)
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if st.Size() != size {
			return nil, fmt.Errorf("%w: %s has %d bytes, and the machine %d", errDamaged, f.Name(), st.Size(), size)
		}
		l, err := pager.SparseLayer(f)
		if err != nil {
			return nil, err
		}
		img.layers = append(img.layers, l)
	}
	img.source, err = pager.NewLayered(size, img.layers...)
	return img, err
}

// base is the oldest layer's file: the one that is mapped.
func (i *image) base() *os.File { return i.files[len(i.files)-1] }

// upper are the layers above the base: they are copied.
func (i *image) upper() []pager.Layer { return i.layers[:len(i.layers)-1] }

// close waits for the end of the machine's service: the machine must have
// ended.
func (i *image) close(ctx context.Context) error {
	var errs []error
	if i.paging != nil {
		if err := i.paging.end(ctx); err != nil {
			return err
		}
		i.paging = nil
	}
	if i.workingSet != nil {
		errs = append(errs, i.workingSet.Close())
		i.workingSet = nil
	}
	for _, f := range i.files {
		errs = append(errs, f.Close())
	}
	i.files = nil
	return errors.Join(errs...)
}

// hint has the kernel read the working set ahead from the file that will be
// mapped.
func (i *image) hint(workingSet string) error {
	ws, err := pager.OpenWorkingSet(workingSet, false)
	if err != nil {
		return err
	}
	defer ws.Close() //nolint:errcheck // read only
	unit := int64(ws.PageSize())
	pages := ws.Recording().Pages
	slices.Sort(pages)
	for len(pages) > 0 {
		n := 1
		for n < len(pages) && pages[n] == pages[n-1]+1 {
			n++
		}
		if err := unix.Fadvise(int(i.base().Fd()), int64(pages[0])*unit, int64(n)*unit, unix.FADV_WILLNEED); err != nil {
			return fmt.Errorf("read ahead: %w", err)
		}
		pages = pages[n:]
	}
	return nil
}

// Prepare starts QEMU and loads the snapshot into it, up to the point where
// the processor would go on.
func (d *Driver) Prepare(ctx context.Context, spec *sandbox.Spec, r sandbox.Restore) (sandbox.Sandbox, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	mode, err := d.restoreMode(r)
	if err != nil {
		return nil, err
	}
	accel, err := d.resolveAccel(ctx)
	if err != nil {
		return nil, err
	}
	b := newBox(spec)
	if err := d.restore(ctx, b, accel, r, mode); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("qemu: restore sandbox %s: %w", spec.ID, err), b.Destroy(clean))
	}
	if r.Record {
		return recording{b}, nil
	}
	return b, nil
}

func (d *Driver) restoreMode(r sandbox.Restore) (sandbox.RestoreMode, error) {
	switch {
	case len(r.Image.Dirs) == 0:
		return "", errors.New("qemu: restore: the image has no folder")
	case r.Mode != "" && !slices.Contains(restoreModes, r.Mode):
		return "", fmt.Errorf("qemu: restore mode %q: %w", r.Mode, sandbox.ErrUnsupported)
	case r.Record:
		return sandbox.RestorePager, nil // nothing else sees what is touched
	case r.Mode == "" && r.Image.WorkingSet != "":
		return sandbox.RestoreHint, nil
	case r.Mode == "":
		return sandbox.RestoreMap, nil
	}
	return r.Mode, nil
}

// restore fills in b, as far as it gets.
func (d *Driver) restore(ctx context.Context, b *box, accel Accel, r sandbox.Restore, mode sandbox.RestoreMode) error {
	begin := time.Now()
	version, err := d.qemuVersion(ctx)
	if err != nil {
		return err
	}
	saved, state, err := openState(r.Image.File(sandbox.FileState))
	if err != nil {
		return err
	}
	defer state.Close() //nolint:errcheck // QEMU has it
	m := b.machine(accel)
	m.incoming = true
	if b.image, err = openImage(r.Image, m.memoryMiB*mib); err != nil {
		return err
	}
	if mode == sandbox.RestoreHint && r.Image.WorkingSet != "" {
		if err := b.image.hint(r.Image.WorkingSet); err != nil {
			return err
		}
	}
	files, err := openFiles(b.spec)
	if err != nil {
		return err
	}
	defer files.close()
	files.state = state
	if b.saved, err = files.describe(m.describe(version, b.spec)); err != nil {
		return err
	}
	if err := saved.fits(&b.saved); err != nil {
		return err
	}
	b.image.state, b.image.newDisks = saved, saved.newDisks(&b.saved)
	memory := b.image.base()
	if mode == sandbox.RestorePager {
		m.paged = true
		devices, err := io.ReadAll(state)
		if err != nil {
			return err
		}
		if files.state, err = b.newPaging(r, devices); err != nil {
			return err
		}
		defer files.state.Close() //nolint:errcheck // QEMU has it
		memory = b.image.paging.memory
	}
	b.limits = m.limits()
	if b.group, err = cgroup.Create(b.spec.Cgroup, b.limits); err != nil {
		return err
	}
	if b.vm, err = d.start(ctx, m, files, memory, b.group); err != nil {
		return err
	}
	b.addPhase("vmm", begin)
	begin = time.Now()
	if b.image.ram, err = findRAM(b.vm.cmd.Process.Pid, memory, m.memoryMiB*mib); err != nil {
		return err
	}
	switch mode {
	case sandbox.RestorePager:
		err = b.serve(ctx)
	case sandbox.RestoreEager:
		err = b.image.ram.apply(b.image.layers)
	default:
		// What the mapping of the base does not show.
		err = b.image.ram.apply(b.image.upper())
	}
	if err == nil && mode != sandbox.RestorePager {
		err = b.vm.load(ctx)
	}
	if err != nil {
		return err
	}
	b.addPhase("load", begin)
	return nil
}

// resume has a prepared machine go on, as somebody else.
func (b *box) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	stop := b.vm.whenDead(cancel)
	defer stop()
	r := &agent.Restored{Token: agent.NewToken(), Hostname: b.spec.Hostname, NewDisks: b.image.newDisks}
	_, _ = rand.Read(r.Entropy[:]) // never fails
	_, _ = rand.Read(r.MachineID[:])
	begin := time.Now()
	if err := b.vm.qmp.Execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("%w: %w", err, b.vm.explain())
	}
	b.addPhase("resume", begin)
	begin = time.Now()
	if err := agent.Resume(ctx, b.netDialer("udp", agent.Port), agent.Token(b.image.state.Token), r); err != nil {
		return fmt.Errorf("%w: %w", err, b.vm.explain())
	}
	b.token, b.marks = r.Token, b.image.state.Marks
	b.openLink()
	b.addPhase("agent", begin)
	return nil
}
