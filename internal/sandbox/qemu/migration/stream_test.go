package migration

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/pager"
)

func pageOf(b byte) []byte { return bytes.Repeat([]byte{b}, PageSize) }

// example is a small state with everything in it.
func example() *State {
	dev := appendU32(appendU32(appendName(appendSection(nil, sectionFull, 7), "timer"), 0), 2)
	dev = appendFooter(append(dev, 1, 2, 3, 0, 6), 7)
	return &State{
		Machine: "microvm", Capabilities: []string{CapIgnoreShared}, PageBits: 12, UUID: make([]byte, 16), SectionID: 2,
		Blocks:  []Block{{"mem", 16 * PageSize, 0}, {"bios", 4 * PageSize, 0xffff0000}},
		Pages:   []Page{{1, 0, pageOf(1)}, {1, PageSize, nil}, {1, 2 * PageSize, pageOf(2)}},
		Devices: dev,
		Description: []byte(`{"devices":[{"name":"timer","instance_id":0,"vmsd_name":"timer","version":2,` +
			`"fields":[{"name":"a","size":1,"array_len":3},{"name":"b","size":2}]}]}`),
	}
}

func encode(t testing.TB, s *State) []byte {
	t.Helper()
	var out bytes.Buffer
	if n, err := s.WriteTo(&out); err != nil || n != int64(out.Len()) {
		t.Fatal(n, err)
	}
	return out.Bytes()
}

func TestRoundTrip(t *testing.T) {
	s := example()
	got, err := Parse(bytes.NewReader(encode(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, s) {
		t.Errorf("got %+v, want %+v", got, s)
	}
	sections, err := got.Sections()
	if err != nil {
		t.Fatal(err)
	}
	want := []Section{{7, "timer", 0, 2, []byte{1, 2, 3, 0, 6}}}
	if !reflect.DeepEqual(sections, want) {
		t.Errorf("sections %+v, want %+v", sections, want)
	}
}

func TestParseRefuses(t *testing.T) {
	front, tail := tiny(t)
	good := append(front, tail...)
	for n := range good {
		if _, err := Parse(bytes.NewReader(good[:n])); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	replace := func(old, by string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("%q is not in the stream", old)
		}
		return bytes.Replace(bytes.Clone(good), []byte(old), []byte(by), 1)
	}
	for name, data := range map[string][]byte{
		"magic":              replace("QEVM", "QEVN"),
		"version":            replace("QEVM\x00\x00\x00\x03", "QEVM\x00\x00\x00\x04"),
		"subsection":         replace("configuration/uuid", "configuration/abcd"),
		"machine's length":   replace("\x00\x00\x00\x07microvm", "\x00\x00\xff\x07microvm"),
		"section's name":     replace("\x03ram", "\x03rom"),
		"block's size":       replace("\x03mem\x00\x00\x00\x00\x00\x01", "\x03mem\x00\x00\x00\x00\x00\x09"),
		"block's twin":       replace("\x04bios\x00\x00\x00\x00\x00\x00\x40\x00", "\x03mem\x00\x00\x00\x00\x00\x00\x40\x00\x00"),
		"more behind":        append(bytes.Clone(good), '}'),
		"description's kind": replace("\x06\x00\x00\x00", "\x05\x00\x00\x00"),
	} {
		if s, err := Parse(bytes.NewReader(data)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %+v", name, err, s)
		}
	}
}

func TestSectionsRefuse(t *testing.T) {
	for name, change := range map[string]func(*State){
		"footer":      func(s *State) { s.Devices[len(s.Devices)-1]++ },
		"more behind": func(s *State) { s.Devices = append(s.Devices, 1) },
		"name":        func(s *State) { s.Devices = bytes.Replace(s.Devices, []byte("timer"), []byte("tamer"), 1) },
		"too large":   func(s *State) { s.Description = bytes.Replace(s.Description, []byte(":3}"), []byte(":9}"), 1) },
		"enormous":    func(s *State) { s.Description = bytes.Replace(s.Description, []byte(":3}"), []byte(":9999999999}"), 1) },
		"overflow":    func(s *State) { s.Description = bytes.Replace(s.Description, []byte(":2}"), []byte(":-1}"), 1) },
		"nested": func(s *State) {
			s.Description = []byte(`{"devices":[` + strings.Repeat(`{"subsections":[`, 40) + strings.Repeat(`]}`, 40) + `]}`)
		},
	} {
		s := example()
		change(s)
		if _, err := s.Sections(); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// live is a stream with all memory, in which pages come again.
func live(t testing.TB) []byte {
	t.Helper()
	s := example()
	s.Capabilities = nil
	s.Pages = append(s.Pages,
		Page{0, 0, pageOf(1)}, Page{0, PageSize, pageOf(2)}, Page{0, 2 * PageSize, nil}, Page{0, 5 * PageSize, pageOf(3)},
		Page{0, 0, pageOf(9)}, Page{0, 5 * PageSize, nil})
	return encode(t, s)
}

func TestSplit(t *testing.T) {
	mem := func(set map[int]byte) []byte {
		b := make([]byte, 16*PageSize)
		for p, v := range set {
			copy(b[p*PageSize:], pageOf(v))
		}
		return b
	}
	want := mem(map[int]byte{0: 9, 1: 2})
	for name, base := range map[string][]byte{
		"whole":                nil,
		"over zeros":           mem(nil),
		"over the same":        want,
		"over other content":   mem(map[int]byte{0: 9, 1: 7, 2: 8, 5: 3}),
		"over the first state": mem(map[int]byte{0: 1, 1: 2, 2: 4, 5: 3}),
	} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			o := SplitOptions{Block: "mem", File: f}
			var layers []pager.Layer
			if base != nil {
				below := pager.Layer{Reader: bytes.NewReader(base), Extents: []pager.Extent{{Length: int64(len(base))}}}
				layers = append(layers, below)
				if o.Base, err = pager.NewLayered(int64(len(base)), below); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Split(t.Context(), bytes.NewReader(live(t)), o)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(s.Pages, example().Pages) || !s.IgnoreShared() {
				t.Errorf("state has pages %v, capabilities %v", s.Pages, s.Capabilities)
			}
			top, err := pager.SparseLayer(f)
			if err != nil {
				t.Fatal(err)
			}
			size := int64(0)
			for _, e := range top.Extents {
				size += e.Length
			}
			if name == "over the same" && size > 0 {
				t.Errorf("%d bytes for no difference", size)
			}
			all, err := pager.NewLayered(16*PageSize, append([]pager.Layer{top}, layers...)...)
			if err != nil {
				t.Fatal(err)
			}
			// A live page that the stream does not have keeps what is below.
			for p := range 6 {
				if p == 3 || p == 4 {
					continue
				}
				got := make([]byte, PageSize)
				if _, err := all.ReadAt(got, int64(p)*PageSize); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want[p*PageSize:(p+1)*PageSize]) {
					t.Errorf("page %d is %x..., want %x...", p, got[:4], want[p*PageSize:p*PageSize+4])
				}
			}
		})
	}
}

func TestSplitRefuses(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	small, err := pager.NewLayered(PageSize)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		stream []byte
		o      SplitOptions
	}{
		"no such block":      {live(t), SplitOptions{Block: "ram", File: f}},
		"shared was ignored": {encode(t, example()), SplitOptions{Block: "mem", File: f}},
		"other base":         {live(t), SplitOptions{Block: "mem", File: f, Base: small}},
		"cut short":          {live(t)[:5000], SplitOptions{Block: "mem", File: f}},
	} {
		if _, err := Split(t.Context(), bytes.NewReader(c.stream), c.o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Split(ctx, bytes.NewReader(live(t)), SplitOptions{Block: "mem", File: f}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWriteIncoming(t *testing.T) {
	s := example()
	data := append(pageOf(5), pageOf(0)...)
	mem := Memory{"mem", bytes.NewReader(data), []pager.Extent{{Offset: 3 * PageSize, Length: 2 * PageSize}}}
	var out bytes.Buffer
	if err := s.WriteIncoming(t.Context(), &out, mem); err != nil {
		t.Fatal(err)
	}
	got, err := Parse(&out)
	if err != nil {
		t.Fatal(err)
	}
	want := append(s.Pages, Page{0, 3 * PageSize, pageOf(5)}, Page{0, 4 * PageSize, nil})
	if !reflect.DeepEqual(got.Pages, want) {
		t.Error("other pages than those given")
	}
	for name, m := range map[string]Memory{
		"no such block":  {"ram", mem.Reader, mem.Extents},
		"outside":        {"mem", mem.Reader, []pager.Extent{{Offset: 15 * PageSize, Length: 2 * PageSize}}},
		"no whole pages": {"mem", mem.Reader, []pager.Extent{{Offset: 1, Length: PageSize}}},
		"out of order":   {"mem", mem.Reader, []pager.Extent{{Offset: PageSize, Length: PageSize}, {Length: PageSize}}},
		"short reader":   {"mem", mem.Reader, []pager.Extent{{Length: 3 * PageSize}}},
	} {
		if err := s.WriteIncoming(t.Context(), io.Discard, m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// tiny is an example that a fuzzer gets through, and what of it comes before
// the devices.
func tiny(t testing.TB) (front, tail []byte) {
	s := example()
	s.Pages = []Page{{1, 0, nil}, {1, PageSize, nil}, {0, 0, nil}}
	all := encode(t, s)
	at := bytes.Index(all, s.Devices)
	return all[:at], all[at:]
}

// What is parsed is bounded, and says the same when it is written again.
func FuzzParse(f *testing.F) {
	front, tail := tiny(f)
	f.Add(front)
	other := example()
	other.Capabilities, other.UUID, other.PageBits, other.Pages = nil, nil, 0, nil
	all := encode(f, other)
	f.Add(all[:len(all)-len(tail)])
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(bytes.NewReader(append(data, tail...)))
		if err != nil {
			return
		}
		for _, p := range s.Pages {
			if p.Offset%PageSize != 0 || p.Offset >= s.Blocks[p.Block].Size || p.Data != nil && len(p.Data) != PageSize {
				t.Fatalf("page at %#x of %+v", p.Offset, s.Blocks[p.Block])
			}
		}
		again, err := Parse(bytes.NewReader(encode(t, s)))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again, s) {
			t.Errorf("written again it is %+v, was %+v", again, s)
		}
	})
}

// Sections lie one behind the other in what they were split from.
func FuzzSections(f *testing.F) {
	s := example()
	f.Add(s.Devices, s.Description)
	f.Fuzz(func(t *testing.T, devices, description []byte) {
		sections, err := (&State{Devices: devices, Description: description}).Sections()
		if err != nil {
			return
		}
		size := 0
		for _, s := range sections {
			size += 1 + 4 + 1 + len(s.Name) + 4 + 4 + len(s.Data) + 5
		}
		if size != len(devices) {
			t.Errorf("sections have %d bytes of %d", size, len(devices))
		}
	})
}
