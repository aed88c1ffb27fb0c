package migration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// CapIgnoreShared is the capability by which QEMU leaves shared memory out of
// the stream.
const CapIgnoreShared = "x-ignore-shared"

// Bounds of what is read.
const (
	// MaxState is the size in bytes of all that a State holds: pages of
	// firmware and the like, and the devices.
	MaxState = 64 << 20
	// MaxMemory is the size in bytes of all blocks together.
	MaxMemory = 1 << 42

	maxBlocks       = 256
	maxCapabilities = 256
	maxMachine      = 256
)

// Block is a piece of the machine's memory.
type Block struct {
	Name string // a memory backend's ID, or of a device's making
	Size uint64 // bytes
	// Address is where the guest sees it. QEMU writes it only with
	// CapIgnoreShared, and compares it only for blocks that it ignores.
	Address uint64
}

// Page is the content of one page.
type Page struct {
	Block  int    // index in State.Blocks
	Offset uint64 // in the block, bytes
	Data   []byte // PageSize bytes; nil: zeros
}

// State is all of a stream but the pages of ignored blocks.
type State struct {
	// Machine is the type, such as "microvm"; "": the stream has no section
	// with the configuration (QEMU's -global migration.send-configuration=off).
	Machine      string
	Capabilities []string // those that a destination must have, too
	PageBits     uint32   // 0: not said
	UUID         []byte   // nil: not said
	SectionID    uint32   // of the section "ram"
	Blocks       []Block
	// Pages holds each page once, with its last content.
	Pages []Page
	// Devices is the sections behind "ram", without the EOF that ends them.
	Devices []byte
	// Description is QEMU's JSON about Devices; nil: the stream has none (its
	// machine has suppress-vmdesc=on).
	Description []byte
	// DevicesOnly says that Blocks lacks those of devices and firmware, which
	// are taken to be zeros: see ParseDevices.
	DevicesOnly bool
}

// ParseDevices reads what QEMU's command xen-save-devices-state writes: a
// stream without memory. The block is the one that the machine's memory is, by
// the name of its memory backend. Firmware is not in such a state, so a machine
// that is restored from it cannot boot again.
func ParseDevices(r io.Reader, block Block) (*State, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxState+1))
	if err != nil {
		return nil, fmt.Errorf("parse device state: %w", err)
	}
	head := appendU32(appendU32(nil, magic), version)
	body, ok := bytes.CutPrefix(data, head)
	body, ended := bytes.CutSuffix(body, []byte{sectionEOF})
	if !ok || !ended || len(body) == 0 || body[0] != sectionFull || len(data) > MaxState {
		return nil, fmt.Errorf("parse device state: %w: %d bytes", ErrFormat, len(data))
	}
	if block.Name == "" || len(block.Name) > 255 || block.Size == 0 || block.Size%PageSize != 0 || block.Size > MaxMemory {
		return nil, fmt.Errorf("parse device state: block %q of %d bytes", block.Name, block.Size)
	}
	return &State{SectionID: devicesRAM, Blocks: []Block{block}, Devices: body, DevicesOnly: true}, nil
}

// devicesRAM is the number of a section "ram" that no saved stream had: QEMU
// numbers from 0.
const devicesRAM = 1 << 16

// IgnoreShared tells whether the stream is one with CapIgnoreShared.
func (s *State) IgnoreShared() bool { return slices.Contains(s.Capabilities, CapIgnoreShared) }

// Block finds a block by its name.
func (s *State) Block(name string) (index int, ok bool) {
	i := slices.IndexFunc(s.Blocks, func(b Block) bool { return b.Name == name })
	return i, i >= 0
}

// Parse reads a stream to its end. Errors about its content wrap ErrFormat.
func Parse(r io.Reader) (*State, error) {
	var c collector
	s, err := decode(r, func(_ *State, p Page) error { return c.add(p) })
	if err != nil {
		return nil, fmt.Errorf("parse migration stream: %w", err)
	}
	s.Pages = c.pages
	return s, nil
}

// collector keeps pages: each once, at its first place, with its last content.
type collector struct {
	pages []Page
	at    map[pageKey]int
	bytes int
}

type pageKey struct {
	block  int
	offset uint64
}

func (c *collector) add(p Page) error {
	const perPage = 64 // about what keeping a page of zeros costs
	p.Data = bytes.Clone(p.Data)
	key := pageKey{p.Block, p.Offset}
	if i, ok := c.at[key]; ok {
		c.bytes += len(p.Data) - len(c.pages[i].Data)
		c.pages[i] = p
	} else {
		if c.at == nil {
			c.at = make(map[pageKey]int)
		}
		c.at[key] = len(c.pages)
		c.pages = append(c.pages, p)
		c.bytes += len(p.Data) + perPage
	}
	if c.bytes > MaxState {
		return fmt.Errorf("%w: more than %d bytes of pages: was it saved with %s, and its memory shared?", ErrFormat, MaxState, CapIgnoreShared)
	}
	return nil
}

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
			d.fail2(sink(s, p))
		}
	}
	return block
}

// fail2 keeps an error as it is, if it is one.
func (d *decoder) fail2(err error) {
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
		d.fail2(fmt.Errorf("read devices: %w", err))
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
