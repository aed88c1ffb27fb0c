// Package guestkernel finds the kernel that micro-VMs boot, and unpacks it.
package guestkernel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Package is the Debian package that brings a suitable kernel.
const Package = "linux-image-cloud-amd64"

// Kernel is a kernel and its modules.
type Kernel struct {
	Image   string // path of a bzImage or vmlinux
	Modules string // directory with modules.dep, "" if there is none
}

// Finder says where to look.
type Finder struct {
	Root string // prefix of all paths but Path; "" is the real root
	Path string // a kernel that was asked for, "" to look
}

// Dir is where an administrator, or skep setup, can put a kernel for Skep alone:
// "vmlinux" or "vmlinuz", with its modules in "modules". Other programs for
// micro-VMs are there, too.
const Dir = "/usr/lib/skep"

// Find returns, in this order: the kernel that was asked for, the one in
// /usr/lib/skep, the newest of the distribution's kernels for virtual
// machines in /boot.
func (f Finder) Find() (Kernel, error) {
	if f.Path != "" {
		if _, err := os.Stat(f.Path); err != nil {
			return Kernel{}, fmt.Errorf("guest kernel: %w (the package %s brings one)", err, Package)
		}
		k := Kernel{Image: f.Path}
		k.Modules = f.modulesFor(f.Path)
		return k, nil
	}
	for _, name := range []string{"vmlinux", "vmlinuz"} {
		p := filepath.Join(f.Root, Dir, name)
		if _, err := os.Stat(p); err == nil {
			return Kernel{Image: p, Modules: f.modulesFor(p)}, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return Kernel{}, fmt.Errorf("guest kernel: %w", err)
		}
	}
	found, err := filepath.Glob(filepath.Join(f.Root, "/boot/vmlinuz-*-cloud-amd64"))
	if err != nil {
		return Kernel{}, err
	}
	slices.SortFunc(found, compareVersions)
	for _, p := range slices.Backward(found) {
		// A kernel that has been removed leaves its modules' directory, or
		// the other way round.
		if m := f.modulesFor(p); m != "" {
			return Kernel{Image: p, Modules: m}, nil
		}
	}
	return Kernel{}, fmt.Errorf("guest kernel: no /boot/vmlinuz-*-cloud-amd64 with modules: apt-get install %s", Package)
}

// modulesFor finds the modules of a kernel: beside it, or by the version in
// its name.
func (f Finder) modulesFor(image string) string {
	dirs := []string{filepath.Join(filepath.Dir(image), "modules")}
	if _, release, ok := strings.Cut(filepath.Base(image), "-"); ok {
		dirs = append(dirs, filepath.Join(f.Root, "/lib/modules", release))
	}
	for _, d := range dirs {
		if _, err := os.Stat(filepath.Join(d, "modules.dep")); err == nil {
			return d
		}
	}
	return ""
}

// compareVersions orders names as people do: 6.1.0-9 before 6.1.0-10.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func digits(s string) int {
	i := strings.IndexFunc(s, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsDigit(r) })
	if i < 0 {
		return len(s)
	}
	return i
}
