package migration_test

import (
	"errors"
	"sync/atomic"

	"github.com/skep-dev/skep/internal/pager"
)

var errFailing = errors.New("disk is on fire")

// failing is a source that fails when it is told to.
type failing struct {
	pager.Source
	fail atomic.Bool
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.fail.Load() {
		return 0, errFailing
	}
	return f.Source.ReadAt(p, off)
}
