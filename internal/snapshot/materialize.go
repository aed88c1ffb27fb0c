package snapshot

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"
)

// Materialize writes the image into f, whose former content is lost, as a
// sparse file: zero pages become holes.
func (l *Layer) Materialize(ctx context.Context, f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("emptying %s: %w", f.Name(), err)
	}
	if err := f.Truncate(l.Size()); err != nil {
		return fmt.Errorf("making %s %d bytes long: %w", f.Name(), l.Size(), err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(l.s.opts.Workers)
	for chunk := range l.chain[0].chunks() {
		if gctx.Err() != nil {
			break
		}
		if l.mentioned(chunk) {
			g.Go(func() error { return l.materializeChunk(gctx, f, chunk) })
		}
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("writing a layer to %s: %w", f.Name(), err)
	}
	return context.Cause(ctx)
}

// materializeChunk writes the runs of pages that come from one place each. It
// goes past the cache, which one pass over the image would only wash out.
func (l *Layer) materializeChunk(ctx context.Context, f *os.File, chunk int) error {
	ix := l.chain[0]
	plains := map[*entry][]byte{}
	for page, pages := 0, ix.pagesIn(chunk); page < pages; {
		e, rank := l.source(chunk, page)
		if e == nil {
			page++
			continue
		}
		run := 1
		for page+run < pages {
			next, r := l.source(chunk, page+run)
			if next != e || r != rank+run {
				break
			}
			run++
		}
		plain, ok := plains[e]
		if !ok {
			var err error
			if plain, err = l.s.readChunk(ctx, e.digest, e.data.count()*ix.pageSize); err != nil {
				return err
			}
			plains[e] = plain
		}
		off := int64(chunk)*ix.chunkBytes() + int64(page*ix.pageSize)
		data := plain[rank*ix.pageSize : (rank+run)*ix.pageSize]
		if _, err := f.WriteAt(data[:min(int64(len(data)), ix.size-off)], off); err != nil {
			return err
		}
		page += run
	}
	return nil
}
