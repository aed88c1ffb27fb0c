package gvisor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/sandbox"
)

// probeTime bounds a probe.
const probeTime = 30 * time.Second

// blockSize is EROFS's.
const blockSize = 4096

// probeCode is what the probe's program exits with.
const probeCode = 42

// Probe implements sandbox.Driver. It runs a program of two instructions.
func (d *Driver) Probe(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("gvisor: not root: namespaces and cgroups cannot be made")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	dir, err := os.MkdirTemp("", "skep-probe-")
	if err != nil {
		return fmt.Errorf("gvisor: probe: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := d.probe(ctx, dir); err != nil {
		return fmt.Errorf("gvisor: probe: %w", err)
	}
	return nil
}

func (d *Driver) probe(ctx context.Context, dir string) (err error) {
	rootfs, ns := filepath.Join(dir, "probe.erofs"), filepath.Join(dir, "net")
	if err := writeProbeImage(rootfs); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if err := netns.Create(ns); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, netns.Remove(ns)) }()
	output, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer output.Close()

	id := sandbox.NewID()
	spec := &sandbox.Spec{
		ID: id, Dir: filepath.Join(dir, "sandbox"), Rootfs: rootfs, Hostname: "probe",
		Process: sandbox.Process{Args: []string{"/probe"}},
		Link: sandbox.Link{
			NetNS: ns, DialNS: ns, Interface: "eth0", // which there is not
			Address: net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)},
		},
		Cgroup: "skep-probe-" + id,
		Stdout: output, Stderr: output,
	}
	if err := os.Mkdir(spec.Dir, 0o700); err != nil {
		return err
	}
	s, err := d.Create(ctx, spec)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		err = errors.Join(err, s.Destroy(ctx))
	}()
	if err := s.Start(ctx); err != nil {
		return err
	}
	exit, err := s.Wait(ctx)
	if err != nil {
		return err
	}
	if exit.Code != probeCode {
		return fmt.Errorf("a program in a sandbox ended with %+v instead of code %d", exit, probeCode)
	}
	return nil
}

func writeProbeImage(path string) (err error) {
	program, err := probeProgram(runtime.GOARCH)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := erofs.Create(f)
	for _, dir := range []string{"/proc", "/dev", "/sys", "/tmp", "/etc"} {
		if err := w.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	p, err := w.Create("/probe")
	if err != nil {
		return err
	}
	if _, err := p.Write(program); err != nil {
		return errors.Join(err, p.Close())
	}
	if err := errors.Join(p.Chmod(0o755), p.Close()); err != nil {
		return err
	}
	return w.Close()
}

// probeProgram is a static executable that does exit(probeCode).
func probeProgram(arch string) ([]byte, error) {
	var machine uint16
	var code []byte
	switch arch {
	case "amd64":
		machine = 62
		code = []byte{
			0xbf, probeCode, 0, 0, 0, // mov edi, probeCode
			0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
			0x0f, 0x05, // syscall
		}
	case "arm64":
		machine = 183
		for _, instruction := range []uint32{
			0xd2800000 | probeCode<<5, // mov x0, probeCode
			0xd2800000 | 93<<5 | 8,    // mov x8, SYS_exit
			0xd4000001,                // svc 0
		} {
			code = binary.LittleEndian.AppendUint32(code, instruction)
		}
	default:
		return nil, fmt.Errorf("gVisor does not run on %s", arch)
	}
	const base, headers = 0x400000, 64 + 56
	var b bytes.Buffer
	for _, part := range []any{
		// The ELF header.
		[16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1},
		uint16(2), machine, uint32(1), // executable, version
		uint64(base + headers), uint64(64), uint64(0), // entry, program headers, section headers
		uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		// One program header: load the whole file, to read and execute.
		uint32(1), uint32(5),
		uint64(0), uint64(base), uint64(base),
		uint64(headers + len(code)), uint64(headers + len(code)), uint64(0x1000),
		code,
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	// A whole block: gVisor does not execute files whose end lies within the
	// image's metadata, as that of short files does.
	return append(b.Bytes(), make([]byte, blockSize-b.Len())...), nil
}
