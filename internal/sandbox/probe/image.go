package probe

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/erofs/go-erofs"
)

// ExitCode is what the image's program ends with.
const ExitCode = 42

// program is the path of the image's only file.
const program = "/probe"

// blockSize is EROFS's, in bytes.
const blockSize = 4096

// WriteImage makes an EROFS image at path, where no file may be. It has the
// usual mount points, and /probe, which ends with ExitCode at once.
func WriteImage(path string) (err error) {
	text, err := executable(runtime.GOARCH)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := erofs.Create(out)
	for _, dir := range []string{"/proc", "/dev", "/sys", "/tmp", "/etc"} {
		if err := w.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	f, err := w.Create(program)
	if err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(0o755), f.Close()); err != nil {
		return err
	}
	return w.Close()
}

// executable is the smallest program there is: it exits with ExitCode. (Our
// own executable would do too, but it is large, and may not be static.)
func executable(arch string) ([]byte, error) {
	var code []byte
	var machine elf.Machine
	switch arch {
	case "amd64":
		machine = elf.EM_X86_64
		code = []byte{
			0xb8, 231, 0, 0, 0, // mov eax, exit_group
			0xbf, ExitCode, 0, 0, 0, // mov edi, ExitCode
			0x0f, 0x05, // syscall
		}
	case "arm64":
		machine = elf.EM_AARCH64
		for _, instruction := range []uint32{
			0xd2800000 | 94<<5 | 8,   // mov x8, exit_group
			0xd2800000 | ExitCode<<5, // mov x0, ExitCode
			0xd4000001,               // svc 0
		} {
			code = binary.LittleEndian.AppendUint32(code, instruction)
		}
	default:
		return nil, fmt.Errorf("no probe program for %s", arch)
	}
	const base, header, segment = 0x400000, 64, 56
	size := uint64(header + segment + len(code))
	var b bytes.Buffer
	for _, v := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
			Entry: base + header + segment, Phoff: header, Ehsize: header, Phentsize: segment, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
			Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 0x1000,
		},
		code,
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			return nil, err
		}
	}
	// A whole block: gVisor does not execute files whose end lies within the
	// image's metadata, as that of short files does.
	return append(b.Bytes(), make([]byte, blockSize-b.Len())...), nil
}
