package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
	"github.com/skep-dev/skep/internal/sandbox/microvm/initramfs"
	"github.com/skep-dev/skep/test/kvmlab/lab"
)

const module = "github.com/skep-dev/skep/"

// Programs that tests build themselves where there is Go.
var testPrograms = []string{
	module + "cmd/skep-agent",
	module + "internal/sandbox/sandboxtest/guest",
}

// firstModules bring the machine to its root; the others it loads by need.
var firstModules = []string{"virtio_mmio", "virtio_blk", "erofs", "overlay"}

// modules are loaded before a job; the kernel loads others by need.
var modules = []string{"kvm-amd", "tun", "loop"}

// machine is what all tries boot.
type machine struct {
	dir, qemu      string
	kernel, initrd string
	root           *pack
	leftOut        []string // which jobs, and why
}

func prepare(ctx context.Context, o options, dir string) (*machine, []lab.Job, error) {
	m := &machine{dir: dir, root: newPack()}
	var err error
	if m.qemu, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return nil, nil, fmt.Errorf("%w: apt-get install qemu-system-x86", err)
	}
	repo, err := repository()
	if err != nil {
		return nil, nil, err
	}
	bin := filepath.Join(dir, "bin")
	if err := build(ctx, repo, filepath.Join(bin, "init"), "build", module+"test/kvmlab/init"); err != nil {
		return nil, nil, err
	}
	for _, p := range testPrograms {
		if err := build(ctx, repo, filepath.Join(bin, path.Base(p)), "build", p); err != nil {
			return nil, nil, err
		}
	}
	var jobs []lab.Job
	if o.exec != "" {
		j, err := m.addCommand(o)
		if err != nil {
			return nil, nil, err
		}
		jobs, o.jobs = append(jobs, j), ""
	}
	names, err := jobNames(o.jobs)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		d := packages[name]
		of, err := m.addJob(ctx, o, repo, bin, name, d)
		if errors.Is(err, exec.ErrNotFound) && d.optional != "" {
			m.leftOut = append(m.leftOut, fmt.Sprintf("%s is left out: %v: %s", name, err, d.optional))
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		jobs = append(jobs, of...)
	}
	if len(jobs) == 0 {
		return nil, nil, errors.New("nothing to test")
	}
	entries, err := os.ReadDir(bin)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		m.root.put(path.Join(lab.BinDir, e.Name()), filepath.Join(bin, e.Name()))
	}
	return m, jobs, m.addSystem(filepath.Join(bin, "init"))
}

// addCommand packs what -exec needs.
func (m *machine) addCommand(o options) (lab.Job, error) {
	for name := range strings.SplitSeq(o.with, ",") {
		if name == "" {
			continue
		}
		p, err := exec.LookPath(name)
		if err == nil {
			err = m.addTool(p)
		}
		if err != nil {
			err = m.root.host(name)
		}
		if err != nil {
			return lab.Job{}, err
		}
	}
	return lab.Job{Name: "exec", Args: strings.Fields(o.exec), Env: []string{searchPath, "HOME=/root"}, Modules: modules}, nil
}

// addTool packs a program with its libraries. One that is in no folder of the
// jobs' PATH goes to lab.BinDir, too.
func (m *machine) addTool(p string) error {
	p, err := filepath.Abs(p)
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Split(strings.TrimPrefix(searchPath, "PATH="), ":"), filepath.Dir(p)) {
		m.root.put(path.Join(lab.BinDir, filepath.Base(p)), p)
	}
	return m.root.program(p)
}

// addSystem packs what every job needs, and makes kernel and initramfs.
func (m *machine) addSystem(initProgram string) error {
	k, err := (guestkernel.Finder{}).Find()
	if err != nil {
		return err
	}
	if k.Modules == "" {
		return fmt.Errorf("the kernel %s has no modules, kvm-amd is one", k.Image)
	}
	for _, p := range []string{k.Image, k.Modules} {
		if err := m.root.host(p); err != nil {
			return err
		}
	}
	for _, p := range []string{"/sbin/modprobe"} {
		if err := m.root.program(p); err != nil {
			return err
		}
	}
	for _, p := range []string{"/usr/share/qemu", "/usr/share/seabios"} {
		if err := m.root.host(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, d := range []string{"/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/var/lib", "/etc"} {
		m.root.dir(d)
	}
	m.root.text("/etc/hosts", []byte("127.0.0.1\tlocalhost\n"))
	m.root.text("/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"))
	m.root.text("/etc/group", []byte("root:x:0:\n"))
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return err
	}
	vmlinux, err := guestkernel.Unpack(image)
	if err != nil {
		return err
	}
	mods, err := initramfs.ReadModules(k.Modules)
	if err != nil {
		return err
	}
	order, err := mods.Order(firstModules...)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(initProgram)
	if err != nil {
		return err
	}
	var cpio bytes.Buffer
	if err := initramfs.Build(&cpio, program, mods, order); err != nil {
		return err
	}
	m.kernel, m.initrd = filepath.Join(m.dir, "vmlinux"), filepath.Join(m.dir, "initrd")
	return errors.Join(os.WriteFile(m.kernel, vmlinux, 0o600), os.WriteFile(m.initrd, cpio.Bytes(), 0o600))
}

// pack writes the root file system for some jobs.
func (m *machine) pack(jobs []lab.Job) error {
	b, err := json.Marshal(jobs)
	if err != nil {
		return err
	}
	m.root.text(lab.JobsFile, b)
	return m.root.write(m.rootImage())
}

func (m *machine) rootImage() string { return filepath.Join(m.dir, "root.erofs") }

func build(ctx context.Context, repo, out string, args ...string) error {
	// Without debug information: the image is read by an emulated machine.
	full := slices.Concat(args[:len(args)-1], []string{"-ldflags=-s -w", "-o", out}, args[len(args)-1:])
	cmd := exec.CommandContext(ctx, "go", full...)
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(full, " "), err, text)
	}
	return nil
}
