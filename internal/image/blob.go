package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const maxManifestBytes = 4 << 20 // also of image configs, as registries have it

func (s *Store) blobPath(h v1.Hash) string { return s.path("blobs", "sha256", h.Hex) }

// checkDigest keeps what is not a SHA-256 digest out of paths.
func checkDigest(h v1.Hash) error {
	if raw, err := hex.DecodeString(h.Hex); h.Algorithm != "sha256" || err != nil || len(raw) != sha256.Size || strings.ToLower(h.Hex) != h.Hex {
		return fmt.Errorf("%w: digest %q is not a lower-case sha256 digest", ErrNotImage, h.String())
	}
	return nil
}

func (s *Store) hasBlob(h v1.Hash) bool {
	_, err := os.Stat(s.blobPath(h))
	return err == nil
}

// readBlob reads a small blob. The digest is verified, disks being what they are.
func (s *Store) readBlob(h v1.Hash) ([]byte, error) {
	if err := checkDigest(h); err != nil {
		return nil, err
	}
	f, err := os.Open(s.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: blob %s is missing", ErrNotFound, h)
	}
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", h, err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", h, err)
	}
	if len(data) > maxManifestBytes {
		return nil, fmt.Errorf("%w: manifest or config %s is larger than %d bytes", ErrTooLarge, h, maxManifestBytes)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != h.Hex {
		return nil, fmt.Errorf("%w: stored blob %s: remove the image and pull it again", ErrCorrupt, h)
	}
	return data, nil
}

// blobFunc opens a blob from the outside, from an offset on. It may return a
// later start than asked for only as 0.
type blobFunc func(ctx context.Context, d v1.Descriptor, offset int64) (r io.ReadCloser, start int64, err error)

// ensureBlob brings a blob into the store unless it is there. The caller has
// pinned it.
func (s *Store) ensureBlob(ctx context.Context, d v1.Descriptor, open blobFunc, done func(int64)) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if s.hasBlob(d.Digest) {
		done(d.Size)
		return nil
	}
	var last int64
	_, err := s.blobs.do(ctx, s.stop, d.Digest.String(), func(p Progress) {
		done(p.Done - last)
		last = p.Done
	}, func(ctx context.Context, report func(Progress)) (struct{}, error) {
		if s.hasBlob(d.Digest) {
			report(Progress{Done: d.Size})
			return struct{}{}, nil
		}
		return struct{}{}, s.download(ctx, d, open, report)
	})
	return err
}

// download writes a blob to a temporary file, resuming after temporary
// errors, and commits it if its size and digest are right.
func (s *Store) download(ctx context.Context, d v1.Descriptor, open blobFunc, report func(Progress)) error {
	f, err := s.tempFile()
	if err != nil {
		return err
	}
	defer discard(f)
	sum := sha256.New()
	var have int64
	err = retry(ctx, func(ctx context.Context) (progressed bool, err error) {
		before := have
		r, start, err := open(ctx, d, have)
		if err != nil {
			return false, err
		}
		defer func() { _ = r.Close() }()
		if start != have {
			if err := f.Truncate(0); err != nil {
				return false, permanent(err)
			}
			sum.Reset()
			have, before = 0, 0
		}
		w := &progressWriter{w: io.MultiWriter(io.NewOffsetWriter(f, have), sum), done: &have, report: report}
		if _, err = io.Copy(w, io.LimitReader(r, d.Size-have+1)); w.err != nil {
			return false, permanent(w.err)
		}
		if err == nil && have < d.Size {
			err = io.ErrUnexpectedEOF
		}
		return have > before, err
	})
	if err != nil {
		return s.ioError(fmt.Errorf("blob %s (%d of %d bytes): %w", d.Digest, have, d.Size, err))
	}
	if got := hex.EncodeToString(sum.Sum(nil)); have != d.Size || got != d.Digest.Hex {
		return fmt.Errorf("%w: want %s of %d bytes, got sha256:%s of %d or more", ErrCorrupt, d.Digest, d.Size, got, have)
	}
	return s.commit(f, "blobs", "sha256", d.Digest.Hex)
}

// progressWriter counts, and tells errors of writing from those of reading.
type progressWriter struct {
	w      io.Writer
	done   *int64
	report func(Progress)
	err    error
}

func (p *progressWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	*p.done += int64(n)
	p.err = err
	p.report(Progress{Done: *p.done})
	return n, err
}

// putBytes stores a small blob.
func (s *Store) putBytes(data []byte) (v1.Hash, error) {
	sum := sha256.Sum256(data)
	h := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	if s.hasBlob(h) {
		return h, nil
	}
	return h, s.writeFile("blobs/sha256/"+h.Hex, data)
}

// pin keeps GC away from digests and rootfs keys until unpin is called.
func (s *Store) pin(keys ...string) (unpin func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.pins[k]++
	}
	var once bool
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if once {
			return
		}
		once = true
		for _, k := range keys {
			if s.pins[k]--; s.pins[k] == 0 {
				delete(s.pins, k)
			}
		}
	}
}
