package pager

import "context"

// walkAhead is how many chunks are read ahead of their use.
const walkAhead = 3

// filled is a chunk of the working set's data, or the error in its place.
type filled struct {
	data []byte
	err  error
}

// Walk gives the set's pages to each, in order: consecutive pages with their
// content, which is valid during the call and nil for zeros. It reads ahead on
// a thread of its own. Damage is an error before its pages are given; what was
// given until then is right.
func (w *WorkingSet) Walk(ctx context.Context, each func(run Run, data []byte) error) error {
	c, err := newChunks(w, walkAhead)
	if err != nil {
		return err
	}
	defer c.free()
	ctx, cancel := context.WithCancel(ctx)
	free := make(chan struct{}, walkAhead) // a token for each chunk that may be read
	full := make(chan filled, walkAhead)
	for range walkAhead - 1 { // all but the one that is in use
		free <- struct{}{}
	}
	go func() {
		defer close(full)
		for i := range w.index.sums {
			select {
			case <-ctx.Done():
				return
			case <-free:
			}
			data, err := c.read(i, false)
			full <- filled{data, err}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		cancel()
		for range full { // until the reader has ended
		}
	}()
	return w.walk(ctx, each, func() ([]byte, error) {
		free <- struct{}{}
		f, ok := <-full
		if !ok {
			return nil, ctx.Err()
		}
		return f.data, f.err
	})
}

// walk goes through the runs, taking their content from the chunks that next
// gives when the one before was used up.
func (w *WorkingSet) walk(ctx context.Context, each func(Run, []byte) error, next func() ([]byte, error)) error {
	size := uint64(w.index.pageSize)
	var chunk []byte
	for _, run := range w.index.runs {
		for run.Count > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := run
			var data []byte
			if !run.Zero {
				if len(chunk) == 0 {
					var err error
					if chunk, err = next(); err != nil {
						return err
					}
				}
				part.Count = min(run.Count, uint32(uint64(len(chunk))/size))
				n := uint64(part.Count) * size
				data, chunk = chunk[:n], chunk[n:]
			}
			if err := each(part, data); err != nil {
				return err
			}
			run.Page, run.Count = run.Page+uint64(part.Count), run.Count-part.Count
		}
	}
	return nil
}
