package migration

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrFormat is wrapped by errors about bytes that are no stream, or one of a
// kind that is not known here.
var ErrFormat = errors.New("not a migration stream that is understood")

// PageSize is the target's and the host's page size, in bytes.
const PageSize = 4 << 10

const (
	magic   = 0x5145564d // "QEVM"
	version = 3
)

// Types of sections.
const (
	sectionEOF           = 0x00
	sectionStart         = 0x01
	sectionPart          = 0x02
	sectionEnd           = 0x03
	sectionFull          = 0x04
	sectionSubsection    = 0x05
	sectionDescription   = 0x06
	sectionConfiguration = 0x07
	sectionCommand       = 0x08
	sectionFooter        = 0x7e
)

// Flags in the lower bits of a page's address.
const (
	flagZero     = 0x02 // a fill byte follows
	flagSize     = 0x04 // all blocks' size together, and the blocks
	flagPage     = 0x08 // the page follows
	flagEOS      = 0x10 // end of a section's pages
	flagContinue = 0x20 // same block as the page before

	flagMask = PageSize - 1
)

// The section that carries memory.
const (
	ramName    = "ram"
	ramVersion = 4
)

// Commands from the source to the destination.
const (
	cmdOpenReturnPath = 1
	cmdPostcopyAdvise = 3
	cmdPostcopyListen = 4
	cmdPostcopyRun    = 5
	cmdDiscard        = 6
	cmdPackaged       = 7
)

// maxPackaged is QEMU's bound of a package, bytes.
const maxPackaged = 16 << 20

// decoder reads numbers; its first error sticks.
type decoder struct {
	r   *bufio.Reader
	buf [8]byte
	err error
}

func newDecoder(r io.Reader) *decoder { return &decoder{r: bufio.NewReaderSize(r, 64<<10)} }

// fail keeps the first error. What ends in the middle is a bad stream too.
func (d *decoder) fail(err error) {
	if d.err != nil {
		return
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", ErrFormat, io.ErrUnexpectedEOF)
	}
	d.err = err
}

func (d *decoder) badf(format string, args ...any) {
	d.fail(fmt.Errorf("%w: %w", ErrFormat, fmt.Errorf(format, args...)))
}

// read fills p.
func (d *decoder) read(p []byte) {
	if d.err != nil {
		clear(p)
		return
	}
	if _, err := io.ReadFull(d.r, p); err != nil {
		d.fail(err)
		clear(p)
	}
}

func (d *decoder) u8() byte {
	d.read(d.buf[:1])
	return d.buf[0]
}

func (d *decoder) u16() uint16 {
	d.read(d.buf[:2])
	return binary.BigEndian.Uint16(d.buf[:2])
}

func (d *decoder) u32() uint32 {
	d.read(d.buf[:4])
	return binary.BigEndian.Uint32(d.buf[:4])
}

func (d *decoder) u64() uint64 {
	d.read(d.buf[:8])
	return binary.BigEndian.Uint64(d.buf[:8])
}

// name reads a string with its length in a byte before it.
func (d *decoder) name() string {
	p := make([]byte, d.u8())
	d.read(p)
	return string(p)
}

// peek is the next byte, which stays; false at the end.
func (d *decoder) peek() (byte, bool) {
	if d.err != nil {
		return 0, false
	}
	p, err := d.r.Peek(1)
	if err != nil {
		if err != io.EOF {
			d.fail(err)
		}
		return 0, false
	}
	return p[0], true
}

// Encoders.

func appendU16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func appendU32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func appendU64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

func appendName(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

func appendCommand(b []byte, cmd uint16, payload []byte) []byte {
	b = appendU16(append(b, sectionCommand), cmd)
	return append(appendU16(b, uint16(len(payload))), payload...)
}

// appendSection begins a part or the end of a section.
func appendSection(b []byte, kind byte, id uint32) []byte { return appendU32(append(b, kind), id) }

func appendFooter(b []byte, id uint32) []byte { return appendSection(b, sectionFooter, id) }
