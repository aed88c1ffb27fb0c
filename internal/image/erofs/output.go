package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// output appends to the image file through one large buffer. Whole blocks of
// zeros are skipped and become holes.
type output struct {
	file    *os.File
	buf     []byte // pending bytes, that end at offset
	offset  int64  // where the next byte goes
	dataEnd int64  // end of file data, once known
}

// extent is a range of the file, in bytes.
type extent struct{ start, length int64 }

const bufferSize = 1 << 20

var zeros [BlockSize]byte

func newOutput(f *os.File) *output {
	// The superblock comes last: until then the file is no file system.
	return &output{file: f, buf: make([]byte, 0, bufferSize), offset: BlockSize}
}

// copyFile appends size bytes of r from a block boundary to a block boundary
// and returns where they start.
func (o *output) copyFile(ctx context.Context, r io.Reader, size int64) (int64, error) {
	start := o.offset
	for size > 0 {
		if cap(o.buf)-len(o.buf) < BlockSize {
			if err := o.flush(); err != nil {
				return 0, err
			}
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
		}
		// The buffer is a whole number of blocks here, before and after.
		old := len(o.buf)
		n := int(min(size, int64(cap(o.buf)-old)))
		padded := int(align(int64(n), BlockSize))
		chunk := o.buf[old : old+padded]
		if _, err := io.ReadFull(r, chunk[:n]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		clear(chunk[n:])
		o.buf = o.buf[:old+padded]
		o.offset += int64(padded)
		size -= int64(n)
		if err := o.skipZeros(old); err != nil {
			return 0, err
		}
	}
	return start, nil
}

// skipZeros turns a tail of the buffer that is all zeros into a hole, if it
// is long enough to be worth a separate write.
func (o *output) skipZeros(from int) error {
	const worth = 16 * BlockSize
	tail := len(o.buf)
	for tail > from && bytes.Equal(o.buf[tail-BlockSize:tail], zeros[:]) {
		tail -= BlockSize
	}
	if len(o.buf)-tail < worth {
		return nil
	}
	end := o.offset
	o.offset -= int64(len(o.buf) - tail)
	o.buf = o.buf[:tail]
	if err := o.flush(); err != nil {
		return err
	}
	o.offset = end
	return nil
}

func (o *output) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := copy(o.buf[len(o.buf):cap(o.buf)], p)
		o.buf = o.buf[:len(o.buf)+n]
		o.offset += int64(n)
		p = p[n:]
		if len(o.buf) == cap(o.buf) {
			if err := o.flush(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

// pad appends zeros up to a multiple of size.
func (o *output) pad(size int64) error {
	_, err := o.Write(zeros[:align(o.offset, size)-o.offset])
	return err
}

func (o *output) flush() error {
	if len(o.buf) > 0 {
		if _, err := o.file.WriteAt(o.buf, o.offset-int64(len(o.buf))); err != nil {
			return fmt.Errorf("writing image: %w", err)
		}
		o.buf = o.buf[:0]
	}
	return nil
}

// punch makes the extents read as zeros and, where the file system can, take
// no space.
func (o *output) punch(ctx context.Context, dead []extent) error {
	slices.SortFunc(dead, func(a, b extent) int { return int((a.start - b.start) / BlockSize) })
	for i := 0; i < len(dead); {
		e := dead[i]
		for i++; i < len(dead) && dead[i].start == e.start+e.length; i++ {
			e.length += dead[i].length
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := unix.Fallocate(int(o.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.start, e.length)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			_, err = io.Copy(io.NewOffsetWriter(o.file, e.start), io.LimitReader(zeroReader{}, e.length))
		}
		if err != nil {
			return fmt.Errorf("freeing space of removed files in the image: %w", err)
		}
	}
	return nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// copyData returns an output to dst that already has all file data of o.
func (o *output) copyData(ctx context.Context, dst *os.File) (*output, error) {
	out := newOutput(dst)
	for at := int64(BlockSize); at < o.dataEnd; {
		start, err := unix.Seek(int(o.file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || start >= o.dataEnd {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("copying image: finding data: %w", err)
		}
		end, err := unix.Seek(int(o.file.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("copying image: finding holes: %w", err)
		}
		end = min(end, o.dataEnd, start+64<<20)
		if _, err := io.Copy(io.NewOffsetWriter(dst, start), io.NewSectionReader(o.file, start, end-start)); err != nil {
			return nil, fmt.Errorf("copying image: %w", err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		at = end
	}
	out.offset, out.dataEnd = o.dataEnd, o.dataEnd
	return out, nil
}
