package guestkernel

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxKernel bounds an unpacked kernel. Debian's takes 60 MB.
const maxKernel = 512 << 20

// The fields of a bzImage's header that we need, see the kernel's
// Documentation/arch/x86/boot.rst.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offProtocol      = 0x206
	offPayload       = 0x248
	offPayloadLength = 0x24c
	minHeader        = 0x250
)

// Unpack returns the ELF kernel within a bzImage, or the file itself if it is
// one. Starting it directly saves the guest from unpacking it, which is slow
// under emulation.
func Unpack(image []byte) ([]byte, error) {
	if bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		return image, checkPVH(image)
	}
	payload, err := findPayload(image)
	if err != nil {
		return nil, err
	}
	r, err := decompressor(payload)
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, maxKernel+1))
	if err != nil {
		return nil, fmt.Errorf("unpack the kernel: %w", err)
	}
	if len(out) > maxKernel {
		return nil, fmt.Errorf("unpack the kernel: it takes more than %d bytes", maxKernel)
	}
	return out, checkPVH(out)
}

func findPayload(image []byte) ([]byte, error) {
	if len(image) < minHeader || string(image[offMagic:offMagic+4]) != "HdrS" {
		return nil, errors.New("not an x86 Linux kernel: neither an ELF file nor a bzImage")
	}
	le := binary.LittleEndian
	if v := le.Uint16(image[offProtocol:]); v < 0x208 {
		return nil, fmt.Errorf("the kernel's boot protocol %d.%02d is too old", v>>8, v&0xff)
	}
	sects := uint64(image[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	begin := (sects+1)*512 + uint64(le.Uint32(image[offPayload:]))
	end := begin + uint64(le.Uint32(image[offPayloadLength:]))
	if begin >= end || end > uint64(len(image)) {
		return nil, errors.New("the kernel image is cut off: its payload lies beyond its end")
	}
	return image[begin:end], nil
}

// decompressor recognises a payload by its magic number, as the kernel's
// scripts/extract-vmlinux does.
func decompressor(p []byte) (io.Reader, error) {
	r := bytes.NewReader(p)
	// The kernel's build appends the unpacked size to all formats that do not
	// end with it. Taken for more of the data it would be an error.
	body := bytes.NewReader(p[:max(0, len(p)-4)])
	switch {
	case bytes.HasPrefix(p, []byte{0x02, 0x21, 0x4c, 0x18}):
		return lz4.NewReader(body), nil
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		return z, nil
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxKernel))
	case bytes.HasPrefix(p, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.NewReader(body)
	case bytes.HasPrefix(p, []byte{0x5d, 0, 0}):
		return lzma.NewReader(body)
	case bytes.HasPrefix(p, []byte("BZh")):
		return bzip2.NewReader(body), nil
	case bytes.HasPrefix(p, []byte(elf.ELFMAG)):
		return r, nil
	}
	return nil, fmt.Errorf("the kernel is compressed in a way that is not supported (it begins with %x); a kernel in gzip, xz, zstd, lz4, lzma or bzip2 form is needed", p[:min(8, len(p))])
}

const noteXenPhys32Entry = 18 // XEN_ELFNOTE_PHYS32_ENTRY

// checkPVH checks that a kernel can be started directly.
func checkPVH(kernel []byte) error {
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return fmt.Errorf("the unpacked kernel: %w", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("the kernel is for %s, not for x86-64", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return fmt.Errorf("the kernel's ELF notes: %w", err)
		}
		if hasNote(b, "Xen", noteXenPhys32Entry) {
			return nil
		}
	}
	return errors.New("the kernel lacks the PVH entry point (CONFIG_PVH)")
}

func hasNote(b []byte, name string, kind uint32) bool {
	le := binary.LittleEndian
	align := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		nameSize, descSize, k := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
		size := 12 + align(nameSize) + align(descSize)
		if size > uint64(len(b)) {
			return false
		}
		if k == kind && string(bytes.TrimRight(b[12:12+nameSize], "\x00")) == name {
			return true
		}
		b = b[size:]
	}
	return false
}
