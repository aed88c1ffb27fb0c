package runc

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	gorunc "github.com/containerd/go-runc"
	"github.com/erofs/go-erofs"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// probeCode is what the probe's program exits with.
const probeCode = 42

// Probe implements [sandbox.Driver]: it runs a container to its end.
func (d *Driver) Probe(ctx context.Context) (err error) {
	path, err := exec.LookPath(d.command)
	if err != nil {
		return missing(d.command, err)
	}
	if err := d.checkVersion(ctx, path); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "skep-probe-")
	if err != nil {
		return fmt.Errorf("probe runc: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	image, bundle, ns := filepath.Join(dir, "image.erofs"), filepath.Join(dir, "bundle"), filepath.Join(dir, "netns")
	if err := writeProbeImage(image); err != nil {
		return fmt.Errorf("probe runc: make an image: %w", err)
	}
	if err := os.Mkdir(bundle, 0o700); err != nil {
		return fmt.Errorf("probe runc: %w", err)
	}
	if err := netns.Create(ns); err != nil {
		return fmt.Errorf("probe runc: %w", err)
	}
	defer func() { err = errors.Join(err, netns.Remove(ns)) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("probe runc: %w", err)
	}
	defer null.Close()
	id := sandbox.NewID()
	sb, err := d.Create(ctx, &sandbox.Spec{
		ID: id, Dir: bundle, Rootfs: image, Hostname: "probe",
		Process:   sandbox.Process{Args: []string{"/probe"}},
		Resources: sandbox.Resources{MemoryBytes: 64 << 20, DiskBytes: 1 << 20, PIDs: 16, CPUMillis: 1000},
		Link:      sandbox.Link{NetNS: ns, DialNS: ns, Interface: "lo", Address: net.IPNet{IP: net.IPv4(127, 0, 0, 1)}},
		Cgroup:    "skep-probe-" + id,
		Stdout:    null, Stderr: null,
	})
	if err != nil {
		return fmt.Errorf("probe runc: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		err = errors.Join(err, sb.Destroy(ctx))
	}()
	if err := sb.Start(ctx); err != nil {
		return fmt.Errorf("probe runc: %w", err)
	}
	exit, err := sb.Wait(ctx)
	if err != nil {
		return fmt.Errorf("probe runc: %w", err)
	}
	if exit.Code != probeCode {
		return fmt.Errorf("probe runc: the container ended with code %d instead of %d: %s", exit.Code, probeCode, exit.Reason)
	}
	return nil
}

// checkVersion wants 1.1, the first with `run --keep`.
func (d *Driver) checkVersion(ctx context.Context, path string) error {
	v, err := (&gorunc.Runc{Command: path}).Version(ctx)
	if err != nil {
		return fmt.Errorf("probe runc: %s --version: %w", path, err)
	}
	if strings.HasPrefix(v.Runc, "0.") || v.Runc == "1.0" || strings.HasPrefix(v.Runc, "1.0.") || strings.HasPrefix(v.Runc, "1.0-") {
		return fmt.Errorf("probe runc: %s has version %s, 1.1 or newer is needed; install it: apt-get install runc", path, v.Runc)
	}
	return nil
}

// writeProbeImage makes a root file system with one program, /probe.
func writeProbeImage(path string) (err error) {
	program, err := probeProgram(runtime.GOARCH)
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := erofs.Create(out)
	f, err := w.Create("/probe")
	if err != nil {
		return err
	}
	if _, err := f.Write(program); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(0o755), f.Close()); err != nil {
		return err
	}
	return w.Close()
}

// probeProgram is the smallest program there is: it exits with probeCode.
// (Our own executable would do too, but it is large, and may not be static.)
func probeProgram(arch string) ([]byte, error) {
	var code []byte
	machine := elf.EM_NONE
	switch arch {
	case "amd64":
		machine = elf.EM_X86_64
		code = []byte{
			0xb8, 231, 0, 0, 0, // mov eax, exit_group
			0xbf, probeCode, 0, 0, 0, // mov edi, probeCode
			0x0f, 0x05, // syscall
		}
	case "arm64":
		machine = elf.EM_AARCH64
		for _, instruction := range []uint32{
			0xd2800000 | 94<<5 | 8,        // mov x8, exit_group
			0xd2800000 | probeCode<<5 | 0, // mov x0, probeCode
			0xd4000001,                    // svc 0
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
	return b.Bytes(), nil
}
