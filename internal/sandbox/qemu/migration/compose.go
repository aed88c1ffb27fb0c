package migration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/skep-dev/skep/internal/pager"
)

// Memory is content that a stream brings for a block.
type Memory struct {
	Block   string // its name
	Reader  io.ReaderAt
	Extents []pager.Extent // sorted, of whole pages
}

// WriteTo writes the state as QEMU itself would save it.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	out := newWriter(context.Background(), w)
	s.write(out, nil)
	return out.total, out.finish("write migration stream")
}

// WriteIncoming writes a stream for a QEMU that waits for one: the state and,
// in place of what the block held before, the pages of memory.
//
// Over a base that QEMU maps copy on write, memory is the layer with the
// changed pages (pager.SparseLayer); a page of zeros in it counts. With a
// memory-backend-ram it is the whole image, whose holes cost nothing.
//
// It returns when QEMU has taken everything but what is in the socket; whether
// it liked it, only QEMU says.
func (s *State) WriteIncoming(ctx context.Context, w io.Writer, memory Memory) error {
	block, ok := s.Block(memory.Block)
	if !ok {
		return fmt.Errorf("write migration stream: the state has no block %q", memory.Block)
	}
	if err := checkExtents(memory, s.Blocks[block].Size); err != nil {
		return fmt.Errorf("write migration stream: %w", err)
	}
	out := newWriter(ctx, w)
	s.write(out, func() {
		out.begin(sectionPart, s.SectionID)
		for _, e := range memory.Extents {
			out.extent(s, block, memory.Reader, e)
		}
		out.end(s.SectionID)
	})
	return out.finish("write migration stream")
}

func checkExtents(m Memory, size uint64) error {
	end := int64(0)
	for _, e := range m.Extents {
		if e.Offset < end || e.Length <= 0 || e.Offset%PageSize != 0 || e.Length%PageSize != 0 || uint64(e.Offset)+uint64(e.Length) > size {
			return fmt.Errorf("extent %+v overlaps, is not of whole pages or outside of block %q with %d bytes", e, m.Block, size)
		}
		end = e.Offset + e.Length
	}
	return nil
}

// write writes the stream, with more in the middle of the memory.
func (s *State) write(out *writer, more func()) {
	out.buf = s.appendHeader(out.buf, s.Capabilities)
	out.buf = s.appendSetup(out.buf, s.IgnoreShared())
	out.begin(sectionPart, s.SectionID)
	out.pages(s)
	out.end(s.SectionID)
	if more != nil {
		more()
	}
	out.begin(sectionEnd, s.SectionID)
	out.end(s.SectionID)
	out.write(s.Devices)
	out.buf = append(out.buf, sectionEOF)
	if s.Description == nil {
		return
	}
	out.buf = append(out.buf, sectionDescription)
	out.buf = appendU32(out.buf, uint32(len(s.Description)))
	out.write(s.Description)
}

func (s *State) appendHeader(b []byte, capabilities []string) []byte {
	b = appendU32(appendU32(b, magic), version)
	if s.Machine == "" {
		return b
	}
	b = appendU32(append(b, sectionConfiguration), uint32(len(s.Machine)))
	b = append(b, s.Machine...)
	sub := func(name string) { b = appendU32(appendName(append(b, sectionSubsection), name), 1) }
	if len(capabilities) > 0 {
		sub(subCapabilities)
		b = appendU32(b, uint32(len(capabilities)))
		for _, c := range capabilities {
			b = appendName(b, c)
		}
	}
	if s.PageBits != 0 {
		sub(subPageBits)
		b = appendU32(b, s.PageBits)
	}
	if s.UUID != nil {
		sub(subUUID)
		b = append(b, s.UUID...)
	}
	return b
}

func (s *State) appendSetup(b []byte, addresses bool) []byte {
	b = appendSection(b, sectionStart, s.SectionID)
	b = appendU32(appendU32(appendName(b, ramName), 0), ramVersion)
	total := uint64(0)
	for _, block := range s.Blocks {
		total += block.Size
	}
	b = appendU64(b, total|flagSize)
	for _, block := range s.Blocks {
		b = appendU64(appendName(b, block.Name), block.Size)
		if addresses {
			b = appendU64(b, block.Address)
		}
	}
	return appendFooter(appendU64(b, flagEOS), s.SectionID)
}

// writer collects small pieces; its first error sticks.
type writer struct {
	ctx   context.Context //nolint:containedctx // a writer lives as long as one call
	w     io.Writer
	buf   []byte
	block int // of the page before, -1: none in this section
	total int64
	err   error
}

const writeSize = 256 << 10

func newWriter(ctx context.Context, w io.Writer) *writer {
	return &writer{ctx: ctx, w: w, buf: make([]byte, 0, writeSize+2*PageSize), block: -1}
}

func (w *writer) flush() {
	if w.err == nil {
		w.err = w.ctx.Err()
	}
	if w.err == nil && len(w.buf) > 0 {
		var n int
		n, w.err = w.w.Write(w.buf)
		w.total += int64(n)
	}
	w.buf = w.buf[:0]
}

func (w *writer) finish(what string) error {
	w.flush()
	if w.err != nil {
		return fmt.Errorf("%s: %w", what, w.err)
	}
	return nil
}

func (w *writer) write(p []byte) {
	for len(p) > 0 {
		n := min(len(p), writeSize)
		w.buf, p = append(w.buf, p[:n]...), p[n:]
		if len(w.buf) >= writeSize {
			w.flush()
		}
	}
}

// begin begins a section of pages.
func (w *writer) begin(kind byte, id uint32) {
	w.buf, w.block = appendSection(w.buf, kind, id), -1
}

// end ends it.
func (w *writer) end(id uint32) {
	w.buf = appendFooter(appendU64(w.buf, flagEOS), id)
}

// head begins a page.
func (w *writer) head(s *State, block int, offset, flags uint64) {
	if block == w.block {
		w.buf = appendU64(w.buf, offset|flags|flagContinue)
		return
	}
	w.buf = appendName(appendU64(w.buf, offset|flags), s.Blocks[block].Name)
	w.block = block
}

// page writes a page; zeros take nine bytes.
func (w *writer) page(s *State, block int, offset uint64, data []byte) {
	if data == nil || isZero(data) {
		w.head(s, block, offset, flagZero)
		w.buf = append(w.buf, 0)
	} else {
		w.head(s, block, offset, flagPage)
		w.buf = append(w.buf, data...)
	}
	if len(w.buf) >= writeSize {
		w.flush()
	}
}

// pages writes the state's own.
func (w *writer) pages(s *State) {
	for _, p := range s.Pages {
		w.page(s, p.Block, p.Offset, p.Data)
	}
}

// extent writes what a reader has of a block.
func (w *writer) extent(s *State, block int, r io.ReaderAt, e pager.Extent) {
	data := make([]byte, min(e.Length, writeSize))
	for e.Length > 0 && w.err == nil {
		part := data[:min(e.Length, int64(len(data)))]
		if n, err := r.ReadAt(part, e.FileOffset); n < len(part) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			w.err = fmt.Errorf("read page at %#x of block %q: %w", e.Offset, s.Blocks[block].Name, err)
			return
		}
		for page := range slices.Chunk(part, PageSize) {
			w.page(s, block, uint64(e.Offset), page)
			e.Offset, e.Length, e.FileOffset = e.Offset+PageSize, e.Length-PageSize, e.FileOffset+PageSize
		}
	}
}
