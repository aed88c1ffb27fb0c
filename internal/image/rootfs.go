package image

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skep-dev/skep/internal/image/erofs"
)

// diskUse is the space a file takes, holes not counted.
func diskUse(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

// prepare makes sure that r's root file system exists and that r's layers
// are the ones it was made of. The caller has pinned r.
func (s *Store) prepare(ctx context.Context, r *record, report func(Progress)) error {
	if err := s.verifyKnown(r); err == nil {
		if _, err := os.Stat(s.rootfsPath(r.key)); err == nil {
			return nil
		}
	}
	// By the layers' own digests too: two images may claim the same
	// uncompressed layers, and only one of them have them.
	var key strings.Builder
	key.WriteString(r.key)
	for _, l := range r.layers {
		key.WriteString(l.Digest.Hex)
	}
	_, err := s.rootfses.do(ctx, s.stop, key.String(), report, func(ctx context.Context, report func(Progress)) (struct{}, error) {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-ctx.Done():
			return struct{}{}, context.Cause(ctx)
		}
		if _, err := os.Stat(s.rootfsPath(r.key)); err == nil {
			return struct{}{}, s.verifyLayers(ctx, r)
		}
		start := time.Now()
		res, err := s.flatten(ctx, r, report)
		if err != nil {
			return struct{}{}, err
		}
		s.log.Info("image flattened", "digest", r.manifest.Digest.String(), "layers", len(r.layers), "files", res.Inodes, "bytes", res.Size, "took", time.Since(start))
		return struct{}{}, nil
	})
	return err
}

// flatten makes the root file system of r.
func (s *Store) flatten(ctx context.Context, r *record, report func(Progress)) (erofs.Result, error) {
	out, err := s.tempFile()
	if err != nil {
		return erofs.Result{}, err
	}
	defer discard(out)
	o := erofs.Options{Limits: erofs.Limits{Bytes: s.cfg.MaxImageBytes, Files: s.cfg.MaxFiles}}
	if _, err := hex.Decode(o.UUID[:], []byte(r.key[:32])); err != nil {
		return erofs.Result{}, fmt.Errorf("root file system key %s: %w", r.key, err)
	}
	b := erofs.NewBuilder(out, o)
	var done, total int64
	for _, l := range r.layers {
		total += l.Size
	}
	for i, l := range r.layers {
		report(Progress{Phase: "flatten", Done: done, Total: total})
		err := s.readLayer(ctx, r, i, func(layer io.Reader) error { return b.AddLayer(ctx, layer) })
		if err != nil {
			return erofs.Result{}, s.ioError(fmt.Errorf("layer %d (%s): %w", i+1, l.Digest, err))
		}
		done += l.Size
	}
	res, err := b.Finish(ctx)
	if err != nil {
		return res, s.ioError(fmt.Errorf("making the root file system: %w", err))
	}
	if res.HasXattrs {
		stripped, err := s.tempFile()
		if err != nil {
			return res, err
		}
		defer discard(stripped)
		if _, err := b.WriteStripped(ctx, stripped); err != nil {
			return res, s.ioError(fmt.Errorf("making the root file system without xattrs: %w", err))
		}
		// First, because the main file's existence says that both are there.
		if err := s.commit(stripped, "rootfs", r.key+".noxattr.erofs"); err != nil {
			return res, err
		}
	}
	report(Progress{Phase: "flatten", Done: total, Total: total})
	return res, s.commit(out, "rootfs", r.key+".erofs")
}

// readLayer gives use the uncompressed i-th layer, and checks that it is the
// one that the image's config names.
func (s *Store) readLayer(ctx context.Context, r *record, i int, use func(io.Reader) error) error {
	d := r.layers[i]
	c, err := compressionOf(d.MediaType)
	if err != nil {
		return err
	}
	f, err := os.Open(s.blobPath(d.Digest))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// Headers and padding come on top of the files.
	limit := s.cfg.MaxImageBytes + 4096*int64(s.cfg.MaxFiles)
	layer, err := openLayer(ctx, f, d.Size, c, limit)
	if err != nil {
		return err
	}
	defer layer.Close()
	if err := use(layer); err != nil {
		return err
	}
	got, err := layer.finish()
	if err != nil {
		return err
	}
	if want := r.config.RootFS.DiffIDs[i]; got != want {
		return fmt.Errorf("%w: uncompressed it is %s, the image's config says %s", ErrCorrupt, got, want)
	}
	return s.writeDiff(d.Digest, got)
}

func (s *Store) diffPath(h v1.Hash) string { return s.path("diffs", h.Hex) }

// writeDiff records which uncompressed layer a blob was seen to hold. Losing
// the record costs only time, so it is not synced.
func (s *Store) writeDiff(blob, diff v1.Hash) error {
	f, err := s.tempFile()
	if err != nil {
		return err
	}
	defer discard(f)
	if _, err := f.WriteString(diff.String()); err != nil {
		return s.ioError(err)
	}
	return s.ioError(os.Rename(f.Name(), s.diffPath(blob)))
}

// verifyKnown returns nil if all layers were seen to be what the config says.
func (s *Store) verifyKnown(r *record) error {
	for i, l := range r.layers {
		if got, err := os.ReadFile(s.diffPath(l.Digest)); err != nil || string(got) != r.config.RootFS.DiffIDs[i].String() {
			return fmt.Errorf("%w: layer %d", ErrCorrupt, i+1)
		}
	}
	return nil
}

// verifyLayers reads the layers that verifyKnown does not know: an image must
// not get the files of another by merely naming them in its config.
func (s *Store) verifyLayers(ctx context.Context, r *record) error {
	for i, l := range r.layers {
		if got, err := os.ReadFile(s.diffPath(l.Digest)); err == nil && string(got) == r.config.RootFS.DiffIDs[i].String() {
			continue
		}
		if err := s.readLayer(ctx, r, i, func(io.Reader) error { return nil }); err != nil {
			return fmt.Errorf("layer %d (%s): %w", i+1, l.Digest, err)
		}
	}
	return nil
}
