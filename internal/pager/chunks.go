package pager

import (
	"errors"
	"fmt"
	"hash/crc32"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// chunks gives the content of a working set piece by piece, in order. Content
// in the page cache is used where it is mapped, which saves copying it once
// more; direct reads go to buffers.
type chunks struct {
	ws      *WorkingSet
	buffers []*buffer
}

// newChunks opens the content; a chunk stays valid while ahead-1 more are read.
func newChunks(ws *WorkingSet, ahead int) (*chunks, error) {
	c := &chunks{ws: ws}
	if ws.mapping != nil {
		_ = ws.Advise() // only a hint
		return c, nil
	}
	for range min(ahead, len(ws.index.sums)) {
		b, err := newBuffer(chunkSize(ws.index.pageSize))
		if err != nil {
			c.free()
			return nil, err
		}
		c.buffers = append(c.buffers, b)
	}
	return c, nil
}

func (c *chunks) free() {
	for _, b := range c.buffers {
		b.free()
	}
}

// read gives chunk i. Its sum is checked if check says so or the chunk was not
// checked yet since the file was opened, and after every direct read.
func (c *chunks) read(i int, check bool) (data []byte, err error) {
	x := c.ws.index
	chunk := int64(chunkSize(x.pageSize))
	off := int64(i) * chunk
	size := min(chunk, x.dataSize-off)
	if c.ws.mapping != nil {
		data = c.ws.mapping[off : off+size]
		err = populate(data)
		check = check || !c.ws.checked[i].Load()
	} else {
		data = c.buffers[i%len(c.buffers)].mem[:size]
		err = readFull(c.ws.file, data, x.dataOffset+off)
		check = true
	}
	if err != nil {
		return nil, fmt.Errorf("%w: chunk %d: %w", ErrDamaged, i, err)
	}
	if !check {
		return data, nil
	}
	sum, err := checksum(data)
	if err != nil || sum != x.sums[i] {
		return nil, fmt.Errorf("%w: checksum of chunk %d: %w", ErrDamaged, i, errors.Join(err, errSum))
	}
	c.ws.checked[i].Store(true)
	return data, nil
}

var errSum = errors.New("content differs from its sum")

// populate reads mapped pages in. Older kernels cannot be asked to; there the
// first look at each page does it.
func populate(data []byte) error {
	for {
		err := unix.Madvise(data, unix.MADV_POPULATE_READ)
		switch err {
		case unix.EINTR, unix.EAGAIN:
			continue
		case unix.EINVAL:
			return nil
		}
		return err
	}
}

// checksum turns the signal of a file that was cut short meanwhile into an
// error.
func checksum(data []byte) (sum uint32, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read mapped file: %v", p)
		}
	}()
	return crc32.Checksum(data, castagnoli), nil
}
