package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
)

// ErrArch is wrapped by errors about a machine that there is nothing for.
var ErrArch = errors.New("no such architecture")

// CheckArch refuses machines that the release's programs do not run on.
func CheckArch(arch string) error {
	if arch == "" {
		arch = runtime.GOARCH
	}
	if arch != "amd64" {
		return fmt.Errorf("%w: Firecracker is set up on amd64 (x86_64) only, and this machine is %s: use --sandbox gvisor or qemu", ErrArch, arch)
	}
	return nil
}

// SetUp installs the programs if they are not there, or are of another release
// than the wanted one; those that were put there by hand it replaces only by
// force or with an archive. It says on out what it found or did, and in its
// error what to do by hand.
func (p Programs) SetUp(ctx context.Context, out io.Writer, force bool) error {
	if err := CheckArch(p.Arch); err != nil {
		return err
	}
	s := p.Status()
	if !force && p.Archive == "" && len(s.Missing) == 0 {
		if s.Current {
			_, err := fmt.Fprintf(out, "firecracker, jailer: %s, in %s already\n", s.Release, p.Dir)
			return err
		}
		if s.Release == "" || len(s.Changed) > 0 {
			_, err := fmt.Fprintf(out, "firecracker, jailer: in %s, %s; %s is wanted: --force replaces them\n", p.Dir, s, p.Release.Version)
			return err
		}
	}
	if err := p.Install(ctx); err != nil {
		return fmt.Errorf(`%w

Firecracker %s could not be set up. By hand: fetch, on a machine that can,
  %s
whose SHA-256 is
  %s
and here: skep setup --archive %s
or put its programs here, as root's and with mode 0755:
  %s  ->  %s
  %s  ->  %s`, err, p.Release.Version, p.Release.URL(), p.Release.SHA256, p.Release.Archive(),
			p.Release.Member("firecracker"), filepath.Join(p.Dir, "firecracker"),
			p.Release.Member("jailer"), filepath.Join(p.Dir, "jailer"))
	}
	was := ""
	if s.Release != "" && s.Release != p.Release.Version {
		was = " instead of " + s.Release
	}
	_, err := fmt.Fprintf(out, "firecracker, jailer: %s%s, in %s\n", p.Release.Version, was, p.Dir)
	return err
}
