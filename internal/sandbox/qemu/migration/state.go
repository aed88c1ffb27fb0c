package migration

import (
	"bytes"
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
