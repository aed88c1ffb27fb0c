package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
)

// kernelTimeout bounds the download of the package.
const kernelTimeout = 10 * time.Minute

// Kernel fetches the distribution's kernel for virtual machines and puts it into
// a folder as guestkernel.Finder expects it: the pinned package, checked against
// its SHA-256, or, where the distribution has it no more, its newest, which apt
// checks by the distribution's signatures. It returns what it has put there. The
// package is not installed: this machine boots what it booted before.
func Kernel(ctx context.Context, pinned firecracker.KernelPackage, dir string) (got firecracker.KernelPackage, err error) {
	if err := CheckArch(""); err != nil {
		return got, err
	}
	ctx, cancel := context.WithTimeout(ctx, kernelTimeout)
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return got, err
	}
	work, err := os.MkdirTemp(dir, ".setup-")
	if err != nil {
		return got, err
	}
	defer os.RemoveAll(work) //nolint:errcheck // a folder of ours
	// apt's own user must be able to write here, or it complains.
	download := func(pkg string) error {
		_, err := tool(ctx, work, "apt-get", "-o", "APT::Sandbox::User=root", "download", pkg)
		return err
	}
	isPinned := download(pinned.Name+"="+pinned.Version) == nil
	if !isPinned {
		out, err := tool(ctx, work, "apt-cache", "depends", guestkernel.Package)
		if err != nil {
			return got, err
		}
		pkg, err := imagePackage(out)
		if err != nil {
			return got, err
		}
		if err := download(pkg); err != nil {
			return got, err
		}
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return got, fmt.Errorf("apt-get download left %d packages in %s, want one", len(debs), work)
	}
	if got, err = describePackage(ctx, debs[0]); err != nil {
		return got, err
	}
	if isPinned && got != pinned {
		return got, fmt.Errorf("%w: the package %s %s is %s, want %s", ErrChecksum, got.Name, got.Version, got.SHA256, pinned.SHA256)
	}
	root := filepath.Join(work, "root")
	if _, err := tool(ctx, work, "dpkg-deb", "-x", debs[0], root); err != nil {
		return got, err
	}
	return got, place(ctx, root, dir)
}

// describePackage reads a package's name and version, and its checksum.
func describePackage(ctx context.Context, deb string) (k firecracker.KernelPackage, err error) {
	if k.SHA256, err = sumOf(deb); err != nil {
		return k, err
	}
	out, err := tool(ctx, filepath.Dir(deb), "dpkg-deb", "-W", "--showformat=${Package} ${Version}", deb)
	if err != nil {
		return k, err
	}
	k.Name, k.Version, _ = strings.Cut(strings.TrimSpace(out), " ")
	return k, nil
}

// imagePackage finds the package with the kernel among what the one that names
// the newest depends on.
func imagePackage(depends string) (string, error) {
	for line := range strings.Lines(depends) {
		_, name, ok := strings.Cut(line, "Depends:")
		name = strings.TrimSpace(name)
		if ok && strings.HasPrefix(name, "linux-image-") && strings.HasSuffix(name, "-cloud-amd64") && !strings.ContainsAny(name, " /") {
			return name, nil
		}
	}
	return "", fmt.Errorf("apt knows no package that %s stands for: apt-get update", guestkernel.Package)
}

// place moves kernel and modules out of an unpacked package. The modules come
// first: without a kernel beside them nobody looks for them.
func place(ctx context.Context, root, dir string) error {
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return errors.New("the package has no kernel in /boot")
	}
	_, release, _ := strings.Cut(filepath.Base(images[0]), "-")
	if _, err := tool(ctx, root, "depmod", "-b", root, release); err != nil {
		return fmt.Errorf("%w (the package kmod brings it)", err)
	}
	modules := filepath.Join(root, "lib/modules", release)
	if _, err := os.Stat(modules); err != nil {
		modules = filepath.Join(root, "usr/lib/modules", release)
	}
	if err := os.RemoveAll(filepath.Join(dir, "modules")); err != nil {
		return err
	}
	if err := os.Rename(modules, filepath.Join(dir, "modules")); err != nil {
		return err
	}
	return os.Rename(images[0], filepath.Join(dir, "vmlinuz"))
}

// tool runs a program and returns its output.
func tool(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(errs.String())
		return "", fmt.Errorf("%s %s: %w: %.500s", name, strings.Join(args, " "), err, text)
	}
	return out.String(), nil
}
