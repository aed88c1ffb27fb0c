package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

type compression int

const (
	plain compression = iota
	gzipped
	zstandard
)

func compressionOf(t types.MediaType) (compression, error) {
	switch t {
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer:
		return plain, nil
	case types.OCILayer, types.DockerLayer:
		return gzipped, nil
	case types.OCILayerZStd:
		return zstandard, nil
	}
	if !t.IsDistributable() || t == types.DockerForeignLayer {
		return 0, fmt.Errorf("%w: a layer must be fetched from its vendor (media type %q): use an image without such", ErrNotImage, t)
	}
	return 0, fmt.Errorf("%w: a layer has media type %q", ErrNotImage, t)
}

const (
	maxRatio      = 1100    // of uncompressed to compressed; gzip cannot exceed 1032
	ratioFloor    = 1 << 30 // bytes that any layer may have, whatever its ratio
	maxZstdWindow = 128 << 20
)

// layerReader reads an uncompressed layer in a goroutine of its own, so that
// decompressing and hashing run beside the consumer.
type layerReader struct {
	*io.PipeReader
	sum  hash.Hash
	done chan struct{}
}

// openLayer starts reading a compressed layer of size bytes. The uncompressed
// stream may have at most limit bytes. The caller calls finish or Close.
func openLayer(ctx context.Context, src io.Reader, size int64, c compression, limit int64) (*layerReader, error) {
	// The declared type is often wrong about compression; the bytes are not.
	buffered := bufio.NewReaderSize(src, 256<<10)
	if magic, err := buffered.Peek(4); err == nil {
		switch {
		case magic[0] == 0x1f && magic[1] == 0x8b:
			c = gzipped
		case string(magic) == "\x28\xb5\x2f\xfd":
			c = zstandard
		case c != plain:
			return nil, fmt.Errorf("%w: it is neither gzip nor zstd, as its media type says", ErrBadLayer)
		}
	}
	var r io.Reader = buffered
	cleanup := func() {}
	switch c {
	case gzipped:
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", ErrBadLayer, err)
		}
		r = z
	case zstandard:
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("%w: zstd: %w", ErrBadLayer, err)
		}
		r, cleanup = z, z.Close
	}
	limit = min(limit, max(ratioFloor, size*maxRatio))
	pr, pw := io.Pipe()
	l := &layerReader{PipeReader: pr, sum: sha256.New(), done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = pw.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer close(l.done)
		defer stop()
		defer cleanup()
		buf := make([]byte, 256<<10)
		n, err := io.CopyBuffer(struct{ io.Writer }{pw}, struct{ io.Reader }{io.TeeReader(io.LimitReader(r, limit+1), l.sum)}, buf)
		switch {
		case n > limit:
			err = fmt.Errorf("%w: a layer of %d bytes unpacks to more than %d", ErrTooLarge, size, limit)
		case isCompressionError(err):
			err = fmt.Errorf("%w: %w", ErrBadLayer, err)
		}
		_ = pw.CloseWithError(err)
	}()
	return l, nil
}

func isCompressionError(err error) bool {
	return err != nil && (errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, zstd.ErrMagicMismatch) || strings.Contains(err.Error(), "flate:") || strings.Contains(err.Error(), "zstd"))
}

// finish reads what follows the archive's end and returns the digest of the
// whole stream.
func (l *layerReader) finish() (v1.Hash, error) {
	if _, err := io.Copy(io.Discard, l.PipeReader); err != nil {
		return v1.Hash{}, err
	}
	<-l.done
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(l.sum.Sum(nil))}, nil
}

// Close ends reading early. It returns when the source is free again.
func (l *layerReader) Close() {
	_ = l.PipeReader.Close()
	<-l.done
}
