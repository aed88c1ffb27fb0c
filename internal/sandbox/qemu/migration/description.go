package migration

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Section is a device's section.
type Section struct {
	ID       uint32
	Name     string // such as "serial" or a device's path
	Instance uint32
	Version  uint32
	Data     []byte
}

// deviceDesc is a device, or a subsection of one, in the description.
type deviceDesc struct {
	Name        string       `json:"name"`
	VMSD        string       `json:"vmsd_name"`
	Instance    uint32       `json:"instance_id"`
	Fields      []fieldDesc  `json:"fields"`
	Subsections []deviceDesc `json:"subsections"`
}

type fieldDesc struct {
	Size  uint64  `json:"size"`
	Count *uint64 `json:"array_len"`
}

const maxDepth = 16

// size is what the device's fields and subsections take in the stream.
func (d *deviceDesc) size(depth int) (uint64, error) {
	if depth > maxDepth {
		return 0, fmt.Errorf("%w: description is nested too deep", ErrFormat)
	}
	total := uint64(0)
	for _, f := range d.Fields {
		n := uint64(1)
		if f.Count != nil {
			n = *f.Count
		}
		if f.Size > MaxState || n > MaxState {
			return 0, fmt.Errorf("%w: a field has %d times %d bytes", ErrFormat, n, f.Size)
		}
		total += f.Size * n
		if total > MaxState {
			return 0, fmt.Errorf("%w: device has more than %d bytes", ErrFormat, MaxState)
		}
	}
	for i := range d.Subsections {
		n, err := d.Subsections[i].size(depth + 1)
		if err != nil {
			return 0, err
		}
		total += 1 + 1 + uint64(len(d.Subsections[i].VMSD)) + 4 + n
	}
	return total, nil
}

// Sections splits Devices by the sizes that Description gives, and checks
// headers and footers. A restore does not need it: it is for looking into a
// snapshot, and for proving that one is whole.
func (s *State) Sections() ([]Section, error) {
	var desc struct {
		Devices []deviceDesc `json:"devices"`
	}
	if err := json.Unmarshal(s.Description, &desc); err != nil {
		return nil, fmt.Errorf("%w: description: %w", ErrFormat, err)
	}
	rest := s.Devices
	var out []Section
	for i := range desc.Devices {
		dev := &desc.Devices[i]
		size, err := dev.size(0)
		if err != nil {
			return nil, fmt.Errorf("device %q: %w", dev.Name, err)
		}
		d := newDecoder(bytes.NewReader(rest))
		if kind := d.u8(); kind != sectionFull {
			d.badf("section of type %#x", kind)
		}
		sec := Section{ID: d.u32(), Name: d.name(), Instance: d.u32(), Version: d.u32()}
		if d.err == nil && (sec.Name != dev.Name || sec.Instance != dev.Instance) {
			d.badf("section %q instance %d", sec.Name, sec.Instance)
		}
		head := 1 + 4 + 1 + len(sec.Name) + 4 + 4
		if d.err == nil && size > uint64(len(rest)-head) {
			d.badf("it has %d bytes by its description, and %d are left", size, len(rest)-head)
		}
		if d.err == nil {
			rest = rest[head:]
			sec.Data, rest = rest[:size], rest[size:]
			d = newDecoder(bytes.NewReader(rest))
			d.footer(sec.ID)
		}
		if d.err != nil {
			return nil, fmt.Errorf("device %q, instance %d: %w", dev.Name, dev.Instance, d.err)
		}
		rest = rest[1+4:]
		out = append(out, sec)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the last device", ErrFormat, len(rest))
	}
	return out, nil
}
