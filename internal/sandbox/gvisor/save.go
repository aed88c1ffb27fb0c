package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/state/statefile"
	gvboot "gvisor.dev/gvisor/runsc/boot"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Save implements sandbox.Saver. gVisor cannot be interrupted in it: when ctx
// ends Save returns at once, and the sandbox stands still until it has written
// what nobody wants any more.
func (s *instance) Save(ctx context.Context, o sandbox.SaveOptions) error {
	err := s.running()
	if err == nil && o.Diff {
		err = fmt.Errorf("save a difference: %w", sandbox.ErrUnsupported)
	}
	if err == nil {
		err = s.save(ctx, o.Dir)
	}
	if err != nil {
		return fmt.Errorf("save gVisor sandbox %s: %w", s.spec.ID, err)
	}
	return nil
}

func (s *instance) save(ctx context.Context, dir string) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// One at a time, also if nobody waits for the other any more.
	select {
	case s.saving <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	files, err := createImage(dir)
	if err != nil {
		<-s.saving
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-s.saving }()
		err := checkpoint(context.WithoutCancel(ctx), s.socket, files)
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		done <- err
	}()
	select {
	case err = <-done:
		err = notRunning(err)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err == nil {
		err = writeIndex(dir)
	}
	if err != nil {
		err = errors.Join(err, removeImage(dir))
	}
	return err
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

var _ sandbox.Saver = (*instance)(nil)
