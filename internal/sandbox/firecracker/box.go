package firecracker

import (
	"context"
	"errors"
	"os"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

// box is one machine.
type box struct {
	*microvm.Box
	d    *Driver
	vm   *vmm
	jail *jail

	// Of a machine that was restored.
	image  *microvm.Image
	paging *paging // nil: its memory is mapped

	// Of Save, one at a time.
	history []*os.File // memory that was written since it was made, oldest first
	lost    bool       // history is not complete
}

func (d *Driver) newBox(spec *sandbox.Spec) *box {
	return &box{Box: microvm.New(Name, spec), d: d}
}

// Destroy ends the machine and frees what it held.
func (b *box) Destroy(ctx context.Context) error {
	return b.DestroyWith(ctx, func(ctx context.Context) error {
		if b.vm != nil {
			b.vm.api.Close()
		}
		if b.paging != nil {
			if err := b.paging.end(ctx); err != nil {
				return err
			}
		}
		var errs []error
		if b.image != nil {
			errs = append(errs, b.image.Close())
		}
		for _, f := range b.history {
			errs = append(errs, f.Close())
		}
		b.history = nil
		if b.jail != nil {
			errs = append(errs, b.jail.remove())
		}
		return errors.Join(errs...)
	})
}
