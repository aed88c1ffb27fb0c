package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// files are the files of an image archive or directory, by clean path.
type files interface {
	open(name string) (io.ReadCloser, int64, error)
	has(name string) bool
	close()
}

// dirFiles are files below a directory; a symlink cannot lead out of it.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", ErrNotImage, name)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (d dirFiles) has(name string) bool {
	st, err := d.root.Stat(name)
	return err == nil && st.Mode().IsRegular()
}

func (d dirFiles) close() { _ = d.root.Close() }

// tarFiles are files in an uncompressed tar file, read in place.
type tarFiles struct {
	file  *os.File
	temp  bool // file is ours to remove
	where map[string]tarFile
}

type tarFile struct {
	offset, size int64
	link         string // another file's name
}

const maxArchiveEntries = 100_000

// openTar indexes a tar file, which may be gzipped.
func (s *Store) openTar(ctx context.Context, f *os.File) (_ *tarFiles, err error) {
	t := &tarFiles{file: f, where: map[string]tarFile{}}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	magic := make([]byte, 2)
	if _, err := f.ReadAt(magic, 0); err != nil {
		return nil, fmt.Errorf("%w: neither an OCI layout nor a `docker save` archive: %w", ErrNotImage, err)
	}
	if magic[0] == 0x1f && magic[1] == 0x8b {
		if err := t.gunzip(ctx, s); err != nil {
			return nil, err
		}
	}
	r := tar.NewReader(t.file)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: neither an OCI layout nor a `docker save` archive: %w", ErrNotImage, err)
		}
		if n > maxArchiveEntries {
			return nil, fmt.Errorf("%w: the archive has more than %d files", ErrTooLarge, maxArchiveEntries)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader does not read ahead, so this is where the data starts.
			offset, err := t.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, fmt.Errorf("reading archive: %w", err)
			}
			t.where[name] = tarFile{offset: offset, size: h.Size}
		case tar.TypeLink:
			t.where[name] = tarFile{link: path.Clean("/" + h.Linkname)[1:]}
		case tar.TypeSymlink: // old dockers link to an earlier layer
			t.where[name] = tarFile{link: path.Join("/", path.Dir(name), h.Linkname)[1:]}
		}
	}
}

// gunzip replaces the file by an uncompressed temporary one.
func (t *tarFiles) gunzip(ctx context.Context, s *Store) error {
	z, err := gzip.NewReader(t.file)
	if err != nil {
		return fmt.Errorf("%w: gzip: %w", ErrNotImage, err)
	}
	tmp, err := s.tempFile()
	if err != nil {
		return err
	}
	limit := s.cfg.MaxImageBytes
	n, err := io.Copy(tmp, io.LimitReader(contextReader{ctx, z}, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("%w: the archive unpacks to more than %d bytes", ErrTooLarge, limit)
	}
	if err == nil {
		_, err = tmp.Seek(0, io.SeekStart)
	}
	if err != nil {
		discard(tmp)
		return s.ioError(fmt.Errorf("unpacking archive: %w", err))
	}
	_ = t.file.Close()
	t.file, t.temp = tmp, true
	return nil
}

type contextReader struct {
	ctx context.Context //nolint:containedctx // lives for one copy
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

func (t *tarFiles) find(name string) (tarFile, bool) {
	for range 10 {
		f, ok := t.where[name]
		if !ok || f.link == "" {
			return f, ok
		}
		name = f.link
	}
	return tarFile{}, false
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	f, ok := t.find(strings.TrimPrefix(path.Clean("/"+name), "/"))
	if !ok {
		return nil, 0, fmt.Errorf("%w: the archive lacks %q", ErrNotImage, name)
	}
	return io.NopCloser(io.NewSectionReader(t.file, f.offset, f.size)), f.size, nil
}

func (t *tarFiles) has(name string) bool {
	_, ok := t.find(name)
	return ok
}

func (t *tarFiles) close() {
	if t.temp {
		discard(t.file)
	} else {
		_ = t.file.Close()
	}
}

// readSmall reads a manifest or the like.
func readSmall(f files, name string) ([]byte, error) {
	r, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	if size > maxManifestBytes {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, name, maxManifestBytes)
	}
	return io.ReadAll(io.LimitReader(r, maxManifestBytes))
}
