package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/state/statefile"
	gvboot "gvisor.dev/gvisor/runsc/boot"

	"github.com/skep-dev/skep/internal/sandbox"
)

// saveGrace is how long a sandbox may take, when nobody wants its snapshot any
// more, to end writing it.
const saveGrace = 10 * time.Second

// Save implements sandbox.Saver. gVisor cannot be interrupted in it: when ctx
// ends the sandbox stands still until it has written what nobody wants any more.
// One that has not within the grace is destroyed: whoever has it for running
// would send it requests, and wait for ever.
//
// The sandbox stands still while it writes all its pages, also for a difference:
// gVisor does not know which of them have changed. They are compared when it
// runs again.
func (s *instance) Save(ctx context.Context, o sandbox.SaveOptions) error {
	err := s.running()
	if err == nil && o.Diff && s.restore == nil {
		err = errors.New("save a difference: the sandbox was booted, there is nothing that it differs from")
	}
	if err == nil {
		err = s.save(ctx, o, saveGrace)
	}
	if err != nil {
		return fmt.Errorf("save gVisor sandbox %s: %w", s.spec.ID, err)
	}
	return nil
}

func (s *instance) save(ctx context.Context, o sandbox.SaveOptions, grace time.Duration) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// One at a time, also if nobody waits for the other any more.
	select {
	case s.saving <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	files, err := createImage(o.Dir)
	if err != nil {
		<-s.saving
		return err
	}
	x := index{ID: sandbox.NewID()}
	goesOn, done := make(chan struct{}), make(chan error, 1)
	go func() {
		defer func() { <-s.saving }()
		x.Mounts = s.mountedDisks() // no more come
		err := checkpoint(context.WithoutCancel(ctx), s.socket, files.files())
		close(goesOn)
		if err == nil {
			x.Pages, err = s.layOut(ctx, files, o.Diff)
		}
		done <- errors.Join(err, files.close())
	}()
	select {
	case err = <-done:
		err = notRunning(err)
	case <-ctx.Done():
		err = errors.Join(context.Cause(ctx), s.awaitGoesOn(ctx, goesOn, grace))
	}
	if err == nil {
		if o.Diff {
			x.Base = s.base.ID
		}
		err = writeIndex(o.Dir, x)
	}
	if err != nil {
		err = errors.Join(err, removeImage(o.Dir))
	}
	return err
}

// awaitGoesOn waits until a sandbox has ended a checkpoint that nobody wants,
// and destroys it if it does not.
func (s *instance) awaitGoesOn(ctx context.Context, goesOn <-chan struct{}, grace time.Duration) error {
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-goesOn:
		return nil
	case <-s.life.Done():
		return sandbox.ErrNotRunning
	case <-t.C:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return errors.Join(
		fmt.Errorf("the sandbox still stood still %s after the end of its time, and was destroyed: %w", grace, sandbox.ErrNotRunning),
		s.Destroy(ctx))
}

// checkpoint has the sandbox at socket write a snapshot to files, and go on.
func checkpoint(ctx context.Context, socket string, files []*os.File) error {
	return call(ctx, socket, gvboot.ContMgrCheckpoint, &control.SaveOpts{
		// Compressing would take longer than all the rest.
		Metadata:      statefile.CompressionLevelNone.ToMetadata(),
		HavePagesFile: true,
		Resume:        true,
		// Restoring takes time for each page, and is done more often.
		AppMFExcludeCommittedZeroPages: true,
	}, nil, files...)
}

// layOut makes the memory of a snapshot out of the pages that were saved. It
// returns how many bytes they are.
func (s *instance) layOut(ctx context.Context, files *image, diff bool) (n int64, err error) {
	b, err := io.ReadAll(io.NewSectionReader(files.ranges, 0, maxRanges))
	if err != nil {
		return 0, err
	}
	ranges, size, err := parseRanges(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", fileRanges, err)
	}
	var base *memory
	if diff {
		m, err := openMemory(s.restore.Image.Dirs)
		if err != nil {
			return 0, err
		}
		defer m.Close() //nolint:errcheck // read only
		size = max(size, m.Sizes[0])
		// Where a hole cannot be as small as a page, there shall be none.
		if ok, err := holes(files.memory); err != nil {
			return 0, err
		} else if ok {
			base = m
		}
	}
	if err := files.memory.Truncate(size); err != nil {
		return 0, err
	}
	return layOut(ctx, files.saved, ranges, base, files.memory)
}

var _ sandbox.Saver = (*instance)(nil)
