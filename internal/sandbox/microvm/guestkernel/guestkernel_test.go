package guestkernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	"github.com/skep-dev/skep/internal/testenv"
)

func touch(t *testing.T, root string, paths ...string) {
	t.Helper()
	for _, p := range paths {
		p = filepath.Join(root, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	f := Finder{Root: root}
	if _, err := f.Find(); err == nil || !strings.Contains(err.Error(), Package) {
		t.Errorf("nothing there: %v, want the package's name", err)
	}
	touch(t, root, "boot/vmlinuz-6.1.0-9-cloud-amd64", "lib/modules/6.1.0-9-cloud-amd64/modules.dep",
		"boot/vmlinuz-6.1.0-10-cloud-amd64", "lib/modules/6.1.0-10-cloud-amd64/modules.dep",
		"boot/vmlinuz-6.1.0-11-cloud-amd64", // its modules are gone
		"boot/vmlinuz-7.0.0-1-amd64", "lib/modules/7.0.0-1-amd64/modules.dep")
	k, err := f.Find()
	if err != nil || k.Image != filepath.Join(root, "boot/vmlinuz-6.1.0-10-cloud-amd64") ||
		k.Modules != filepath.Join(root, "lib/modules/6.1.0-10-cloud-amd64") {
		t.Errorf("%+v, %v; want 6.1.0-10", k, err)
	}
	touch(t, root, "usr/lib/skep/vmlinux", "usr/lib/skep/modules/modules.dep")
	if k, err = f.Find(); err != nil || k.Image != filepath.Join(root, "usr/lib/skep/vmlinux") || k.Modules == "" {
		t.Errorf("%+v, %v; want the one in /usr/lib/skep", k, err)
	}
	f.Path = filepath.Join(root, "boot/vmlinuz-7.0.0-1-amd64")
	if k, err = f.Find(); err != nil || k.Image != f.Path || k.Modules == "" {
		t.Errorf("%+v, %v; want the one asked for", k, err)
	}
	f.Path += "x"
	if _, err := f.Find(); err == nil {
		t.Error("a kernel that does not exist was found")
	}
}

func TestCompareVersions(t *testing.T) {
	names := []string{"6.1.0-10", "6.10.0-1", "6.1.0-9", "5.9", "6.1.0-009", "6.1"}
	slices.SortStableFunc(names, compareVersions)
	if want := []string{"5.9", "6.1", "6.1.0-9", "6.1.0-009", "6.1.0-10", "6.10.0-1"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// tinyKernel is an ELF file with the note that makes it bootable, followed by
// something to compress.
func tinyKernel(t testing.TB) []byte {
	t.Helper()
	note := binary.LittleEndian.AppendUint32(nil, 4)
	note = binary.LittleEndian.AppendUint32(note, 8)
	note = binary.LittleEndian.AppendUint32(note, noteXenPhys32Entry)
	note = append(note, "Xen\x00"+"entrance"...)
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64,
		Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	p := elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: uint64(len(note)), Memsz: uint64(len(note))}
	var b bytes.Buffer
	for _, v := range []any{h, p, note, bytes.Repeat([]byte("kernel "), 1000)} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func bzImage(payload []byte) []byte {
	const setup = 4
	b := make([]byte, (setup+1)*512)
	b[offSetupSects] = setup
	copy(b[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[offProtocol:], 0x20f)
	binary.LittleEndian.PutUint32(b[offPayload:], 16)
	binary.LittleEndian.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	return append(append(b, make([]byte, 16)...), append(payload, "the end"...)...)
}

func TestUnpack(t *testing.T) {
	kernel := tinyKernel(t)
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(kernel)))
	var gz, l4, x bytes.Buffer
	g := gzip.NewWriter(&gz)
	_, _ = g.Write(kernel)
	_ = g.Close()
	l := lz4.NewWriter(&l4)
	if err := l.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	_, _ = l.Write(kernel)
	_ = l.Close()
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = xw.Write(kernel)
	_ = xw.Close()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{
		"vmlinux": kernel,
		"none":    bzImage(kernel),
		"gzip":    bzImage(append(gz.Bytes(), size...)),
		"lz4":     bzImage(append(l4.Bytes(), size...)),
		"xz":      bzImage(append(x.Bytes(), size...)),
		"zstd":    bzImage(append(z.EncodeAll(kernel, nil), size...)),
	} {
		got, err := Unpack(image)
		if err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(kernel))
		}
	}
	noNote := bytes.Replace(kernel, []byte("Xen\x00"), []byte("Xem\x00"), 1)
	for name, image := range map[string][]byte{
		"empty": nil, "text": []byte(strings.Repeat("text", 1000)), "cut off": bzImage(kernel)[:3000],
		"unknown": bzImage([]byte("compressed somehow")), "no PVH": noNote,
	} {
		if _, err := Unpack(image); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestUnpackReal(t *testing.T) {
	k, err := Finder{}.Find()
	if err != nil {
		testenv.File(t, "/boot/vmlinuz-*-cloud-amd64", "apt-get install "+Package)
	}
	b, err := os.ReadFile(k.Image)
	if err != nil {
		t.Skip(err)
	}
	out, err := Unpack(b)
	if err != nil || !bytes.HasPrefix(out, []byte(elf.ELFMAG)) {
		t.Errorf("%s: %d bytes, %v", k.Image, len(out), err)
	}
}

func FuzzUnpack(f *testing.F) {
	kernel := tinyKernel(f)
	f.Add(kernel)
	f.Add(bzImage(kernel))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := Unpack(b)
		if err == nil && !bytes.HasPrefix(out, []byte(elf.ELFMAG)) {
			t.Error("not a kernel")
		}
	})
}
