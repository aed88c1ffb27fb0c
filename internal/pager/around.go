package pager

import (
	"errors"

	"golang.org/x/sys/unix"
)

// zeroWindow is how many pages of zeros, aligned, come at most with one that
// was asked for. Linux maps 16 pages of a file around a fault; but zeros take
// no room, and a machine that takes fresh memory takes much of it.
const zeroWindow = 128

// zeroAround installs the neighbours of a page of zeros that are zeros, too,
// and not there. It may do less: they are only ahead of their time.
func (w *worker) zeroAround(a *area, page uint64) error {
	if !w.cfg.ZeroAround || w.pageSize != PageSize || w.memory.recording() {
		return nil
	}
	start := page &^ (zeroWindow - 1)
	end := min(start+zeroWindow, a.pages)
	for n := end - page - 1; n > 0; n /= 2 {
		if w.zeros(a, page+1, n) {
			if _, err := w.zeroRun(a, page+1, n); err != nil {
				return err
			}
			break
		}
	}
	// What the kernel does not install from the start, it may from nearer on.
	for n := page - start; n > 0; n /= 2 {
		if w.zeros(a, page-n, n) {
			if whole, err := w.zeroRun(a, page-n, n); err != nil || whole {
				return err
			}
		}
	}
	return nil
}

// zeros says if pages are zeros for all that the source knows.
func (w *worker) zeros(a *area, first, count uint64) bool {
	return w.cfg.Source.Zero(int64(a.Offset+first*w.pageSize), int64(count*w.pageSize))
}

// zeroRun installs pages of zeros up to the first that is there, and says if
// that was all. What the process has removed is zeros, too.
func (w *worker) zeroRun(a *area, first, count uint64) (whole bool, err error) {
	w.memory.mu.RLock()
	defer w.memory.mu.RUnlock()
	n, err := w.cfg.UFFD.Zero(a.Base+first*w.pageSize, count*w.pageSize, true)
	w.stats.around.Add(uint64(n) / w.pageSize)
	if errors.Is(err, unix.ESRCH) {
		return false, errGone
	}
	return err == nil, nil // whatever else: they are asked for when they are needed
}
