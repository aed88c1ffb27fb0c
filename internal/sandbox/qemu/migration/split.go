package migration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

// SplitOptions say where the memory of a stream goes.
type SplitOptions struct {
	// Block is the name of the block whose pages are taken out.
	Block string
	// File becomes its memory: an empty file, made sparse, whose size is the
	// block's. A hole is zeros or, with Base, what the base has there.
	File *os.File
	// Base, when set, makes File hold only pages that differ from it.
	Base pager.Source
}

// Split reads a stream that QEMU saves with all its memory, as it must where
// the block is private to it (a clone's), and takes the block's pages out. What
// is left is the State that CapIgnoreShared would have given: it restores in
// every way with File, or Base and File, as memory.
//
// QEMU may send a page again when the guest changes it meanwhile: the last
// content counts.
func Split(ctx context.Context, r io.Reader, o SplitOptions) (*State, error) {
	var other collector
	out := splitter{SplitOptions: o, block: -1}
	s, err := decode(r, func(s *State, p Page) error {
		if out.block < 0 {
			if err := out.open(s); err != nil {
				return err
			}
		}
		if p.Block != out.block {
			return other.add(p)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return out.page(p)
	})
	if err == nil && out.block < 0 {
		err = out.open(s)
	}
	if err == nil {
		err = out.flush()
	}
	if err != nil {
		return nil, fmt.Errorf("split migration stream: %w", err)
	}
	s.Pages = other.pages
	if !s.IgnoreShared() {
		s.Capabilities = append(s.Capabilities, CapIgnoreShared)
	}
	return s, nil
}

// splitter writes the pages of one block. Consecutive ones are written
// together.
type splitter struct {
	SplitOptions
	block   int
	pending []byte
	at      int64 // of pending
	written map[int64]struct{}
	base    []byte
}

const splitWrite = 256 << 10

func (o *splitter) open(s *State) error {
	i, ok := s.Block(o.Block)
	if !ok {
		return fmt.Errorf("the stream has no block %q", o.Block)
	}
	if s.IgnoreShared() {
		return fmt.Errorf("the stream was saved with %s: the block's memory is in the file that backs it", CapIgnoreShared)
	}
	size := int64(s.Blocks[i].Size)
	if o.Base != nil && o.Base.Size() != size {
		return fmt.Errorf("block %q has %d bytes, its base %d", o.Block, size, o.Base.Size())
	}
	if err := o.File.Truncate(size); err != nil {
		return err
	}
	o.block, o.written, o.base = i, make(map[int64]struct{}), make([]byte, PageSize)
	return nil
}

func (o *splitter) page(p Page) error {
	off := int64(p.Offset)
	if off != o.at+int64(len(o.pending)) || len(o.pending) >= splitWrite {
		if err := o.flush(); err != nil {
			return err
		}
	}
	_, again := o.written[off]
	same, err := o.below(off, p.Data)
	if err != nil {
		return err
	}
	if same && !again {
		return nil
	}
	if same {
		return o.punch(off)
	}
	if len(o.pending) == 0 {
		o.at = off
	}
	if p.Data == nil {
		p.Data = zeroPage[:]
	}
	o.pending = append(o.pending, p.Data...)
	o.written[off] = struct{}{}
	return nil
}

// below tells whether a hole would read as data does; nil is zeros.
func (o *splitter) below(off int64, data []byte) (bool, error) {
	if o.Base == nil {
		return data == nil, nil
	}
	if o.Base.Zero(off, PageSize) {
		return data == nil, nil
	}
	if n, err := o.Base.ReadAt(o.base, off); n < PageSize {
		return false, fmt.Errorf("read base at %#x: %w", off, errors.Join(err, io.ErrUnexpectedEOF))
	}
	if data == nil {
		return isZero(o.base), nil
	}
	return bytes.Equal(o.base, data), nil
}

// punch makes a page that was written before a hole.
func (o *splitter) punch(off int64) error {
	if err := o.flush(); err != nil {
		return err
	}
	err := unix.Fallocate(int(o.File.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, PageSize)
	if err != nil {
		return fmt.Errorf("punch hole at %#x of %s: %w", off, o.File.Name(), err)
	}
	delete(o.written, off)
	return nil
}

func (o *splitter) flush() error {
	if len(o.pending) == 0 {
		return nil
	}
	_, err := o.File.WriteAt(o.pending, o.at)
	o.pending = o.pending[:0]
	return err
}
