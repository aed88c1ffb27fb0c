package migration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// decode reads a stream and gives its pages to sink, one after the other; a
// page's data is valid during the call.
func decode(r io.Reader, sink func(*State, Page) error) (*State, error) {
	d := newDecoder(r)
	s := &State{}
	if m := d.u32(); m != magic && d.err == nil {
		d.badf("magic number is %#x", m)
	}
	if v := d.u32(); v != version && d.err == nil {
		d.badf("version %d, not %d", v, version)
	}
	s.configuration(d)
	s.setup(d)
	block := -1
	for done := false; !done && d.err == nil; {
		switch kind := d.u8(); kind {
		case sectionPart, sectionEnd:
			if id := d.u32(); id != s.SectionID {
				d.badf("section %d is not %q, whose number is %d", id, ramName, s.SectionID)
			}
			block = s.pages(d, block, sink)
			d.footer(s.SectionID)
			done = kind == sectionEnd
		default:
			d.badf("section of type %#x where memory is expected", kind)
		}
	}
	s.tail(d)
	if d.err != nil {
		return nil, d.err
	}
	return s, nil
}

func (d *decoder) footer(id uint32) {
	if kind := d.u8(); kind != sectionFooter {
		d.badf("section %d has no footer", id)
	}
	if got := d.u32(); got != id {
		d.badf("footer of section %d says %d", id, got)
	}
}

// configuration reads the section of this name, whose subsections cannot be
// skipped, as they do not say how long they are.
func (s *State) configuration(d *decoder) {
	if kind, _ := d.peek(); kind != sectionConfiguration {
		return
	}
	d.u8()
	n := d.u32()
	if n == 0 || n > maxMachine {
		d.badf("name of machine type has %d bytes", n)
		return
	}
	machine := make([]byte, n)
	d.read(machine)
	s.Machine = string(machine)
	for range 8 {
		if kind, _ := d.peek(); kind != sectionSubsection {
			return
		}
		d.u8()
		name, v := d.name(), d.u32()
		if v != 1 {
			d.badf("subsection %q has version %d", name, v)
			return
		}
		switch name {
		case subCapabilities:
			n := d.u32()
			if n > maxCapabilities {
				d.badf("%d capabilities", n)
				return
			}
			for range n {
				s.Capabilities = append(s.Capabilities, d.name())
			}
		case subPageBits:
			s.PageBits = d.u32()
			if s.PageBits != 12 {
				d.badf("pages of 2^%d bytes", s.PageBits)
			}
		case subUUID:
			s.UUID = make([]byte, 16)
			d.read(s.UUID)
		default:
			d.badf("unknown subsection %q", name)
		}
		if d.err != nil {
			return
		}
	}
	d.badf("too many subsections")
}

const (
	subCapabilities = "configuration/capabilities"
	subPageBits     = "configuration/target-page-bits"
	subUUID         = "configuration/uuid"
)

// setup reads the start of the section "ram".
func (s *State) setup(d *decoder) {
	if kind := d.u8(); kind != sectionStart {
		d.badf("section of type %#x where the start of %q is expected", kind, ramName)
	}
	s.SectionID = d.u32()
	name, instance, v := d.name(), d.u32(), d.u32()
	if d.err == nil && (name != ramName || instance != 0 || v != ramVersion) {
		d.badf("section %q, instance %d, version %d, not %q, 0, %d", name, instance, v, ramName, ramVersion)
	}
	head := d.u64()
	if head&flagMask != flagSize || head > MaxMemory {
		d.badf("memory begins with %#x", head)
	}
	seen := map[string]bool{}
	for left := head &^ flagMask; left > 0 && d.err == nil; {
		b := Block{Name: d.name(), Size: d.u64()}
		if s.IgnoreShared() {
			b.Address = d.u64()
		}
		switch {
		case d.err != nil:
		case b.Name == "" || b.Size == 0 || b.Size%PageSize != 0 || b.Size > left:
			d.badf("block %q of %d bytes, %d are left", b.Name, b.Size, left)
		case seen[b.Name] || len(s.Blocks) == maxBlocks:
			d.badf("block %q is there twice, or there are too many", b.Name)
		}
		seen[b.Name] = true
		s.Blocks = append(s.Blocks, b)
		left -= b.Size
	}
	if end := d.u64(); end != flagEOS {
		d.badf("start of %q ends with %#x", ramName, end)
	}
	d.footer(s.SectionID)
}

// pages reads pages up to the end of the section. block is the last one of the
// sections before, and it returns its own last one.
func (s *State) pages(d *decoder, block int, sink func(*State, Page) error) int {
	page := make([]byte, PageSize)
	for d.err == nil {
		head := d.u64()
		flags, offset := head&flagMask, head&^flagMask
		if flags == flagEOS {
			return block
		}
		if flags&flagContinue == 0 {
			block, _ = s.Block(d.name())
		}
		if d.err == nil && (block < 0 || offset >= s.Blocks[block].Size) {
			d.badf("page at %#x of block %d", offset, block)
			return block
		}
		p := Page{Block: block, Offset: offset}
		switch flags &^ flagContinue {
		case flagZero:
			if fill := d.u8(); fill != 0 {
				p.Data = bytes.Repeat([]byte{fill}, PageSize)
			}
		case flagPage:
			d.read(page)
			p.Data = page
			if isZero(page) {
				p.Data = nil
			}
		default:
			d.badf("page with flags %#x: compressed and multifd streams are not read", flags)
		}
		if d.err == nil {
			d.abort(sink(s, p))
		}
	}
	return block
}

// abort keeps an error that is not the stream's, if it is one.
func (d *decoder) abort(err error) {
	if d.err == nil {
		d.err = err
	}
}

// tail reads the devices and what describes them. The devices' sections do not
// say how long they are, but the description is the end of the stream, and
// JSON, in which the bytes before it cannot occur: so there is no other place
// where the rest of the stream is a description of just the length it says.
func (s *State) tail(d *decoder) {
	if d.err != nil {
		return
	}
	rest, err := io.ReadAll(io.LimitReader(d.r, MaxState+1))
	if err != nil {
		d.abort(fmt.Errorf("read devices: %w", err))
		return
	}
	if len(rest) > MaxState {
		d.badf("devices take more than %d bytes", MaxState)
		return
	}
	for at := 0; ; {
		i := bytes.Index(rest[at:], []byte{sectionEOF, sectionDescription})
		if i < 0 {
			break
		}
		at += i + 1
		json, ok := description(rest[at+1:])
		if ok {
			s.Devices, s.Description = rest[:at-1], json
			return
		}
	}
	d.badf("no description of the devices at its end: it is cut short, or of a QEMU with suppress-vmdesc")
}

// description is the JSON that fills p behind its length.
func description(p []byte) ([]byte, bool) {
	if len(p) < 5 || p[4] != '{' {
		return nil, false
	}
	n := uint64(p[0])<<24 | uint64(p[1])<<16 | uint64(p[2])<<8 | uint64(p[3])
	if n != uint64(len(p)-4) || !json.Valid(p[4:]) {
		return nil, false
	}
	return p[4:], true
}

var zeroPage [PageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }
