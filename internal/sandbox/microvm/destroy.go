package microvm

import (
	"context"
	"errors"
	"fmt"
)

// Destroy ends the machine and frees what the box holds.
func (b *Box) Destroy(ctx context.Context) error {
	return b.DestroyWith(ctx, func(context.Context) error { return nil })
}

// DestroyWith is Destroy, and frees what the driver holds, once the machine has
// ended and no Snapshot is under way. It may be called again, after an error,
// and then calls free again.
func (b *Box) DestroyWith(ctx context.Context, free func(context.Context) error) error {
	b.mu.Lock()
	b.destroyed = true
	b.mu.Unlock()
	if err := Lock(ctx, b.destroying); err != nil {
		return err
	}
	defer Unlock(b.destroying)
	var errs []error
	if b.Machine != nil {
		b.Machine.Kill()
		select {
		case <-b.Machine.Dead():
		case <-ctx.Done():
			errs = append(errs, ctx.Err())
		}
	}
	b.link.close()
	b.conns.close()
	if b.Group != nil {
		errs = append(errs, b.Group.Kill(ctx))
	}
	errs = append(errs, b.free(ctx, free))
	if b.Group != nil {
		// Last: what was freed may have been counted to it.
		errs = append(errs, b.Group.Delete(ctx))
	}
	b.mu.Lock()
	started := b.started
	b.mu.Unlock()
	if started {
		select {
		case <-b.ended:
		case <-ctx.Done():
			errs = append(errs, ctx.Err())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: destroy sandbox %s: %w", b.Driver, b.Spec.ID, err)
	}
	return nil
}

// Discard is for a Create that failed: destroy frees what there is already. It
// returns the error for the caller.
func (b *Box) Discard(ctx context.Context, err error, destroy func(context.Context) error) error {
	clean, cancel := CleanUp(ctx)
	defer cancel()
	return errors.Join(b.wrap(err), destroy(clean))
}

func (b *Box) free(ctx context.Context, free func(context.Context) error) error {
	if err := Lock(ctx, b.saving); err != nil {
		return err
	}
	defer Unlock(b.saving)
	return free(ctx)
}
