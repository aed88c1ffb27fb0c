package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/state/statefile"
	gvboot "gvisor.dev/gvisor/runsc/boot"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Save implements sandbox.Saver. It cannot be interrupted: when it is
// cancelled it returns at once, and the sandbox goes on when it has written
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
	s.saving.Lock() // gVisor would crash of two at the same time
	defer s.saving.Unlock()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	opts := &control.SaveOpts{
		// Compressing would take longer than all the rest.
		Metadata:      statefile.CompressionLevelNone.ToMetadata(),
		HavePagesFile: true,
		Resume:        true,
		// Restoring takes time for each page, saving is not hurried.
		AppMFExcludeCommittedZeroPages: true,
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
			if err != nil {
				err = errors.Join(err, os.Remove(f.Name()))
			}
		}
	}()
	for _, image := range imageFiles {
		f, err := os.OpenFile(filepath.Join(dir, image.name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if err := call(ctx, s.socket, gvboot.ContMgrCheckpoint, opts, nil, files...); err != nil {
		return notRunning(err)
	}
	return writeIndex(dir)
}

var _ sandbox.Saver = (*instance)(nil)
