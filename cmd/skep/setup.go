package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/install"
	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
)

func newSetup(_ *globals) *cobra.Command {
	var archive string
	var force bool
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Fetch and check what micro-VMs need: Firecracker and a guest kernel",
		Long: fmt.Sprintf(`Fetch and check what micro-VMs need, and put it into %s:

  firecracker, jailer   release %s, checked against its pinned SHA-256
  vmlinuz, modules      if this machine has no kernel for guests: that of the
                        package %s %s,
                        checked against its pinned SHA-256, or, where Debian has
                        that no more, of %s, checked by
                        apt; it is not installed as this machine's own kernel

Without a way to the internet, fetch the archive elsewhere and give it with
--archive; what is missing, and from where, is said by name.`, firecracker.InstallDir, firecracker.Pinned().Version,
			firecracker.Pinned().Kernel.Name, firecracker.Pinned().Kernel.Version, guestkernel.Package),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p := install.Programs{Release: firecracker.Pinned(), Dir: firecracker.InstallDir, Archive: archive}
			return errors.Join(setUpPrograms(cmd, p, force), setUpKernel(cmd))
		},
	}
	cmd.Flags().StringVar(&archive, "archive", "", "Firecracker's archive, fetched elsewhere")
	cmd.Flags().BoolVar(&force, "force", false, "replace the programs that are there")
	return cmd
}

func setUpPrograms(cmd *cobra.Command, p install.Programs, force bool) error {
	bar := newProgress()
	if force || p.Archive != "" || !p.Status().Current {
		bar.step("setting up Firecracker " + p.Release.Version)
	}
	var out bytes.Buffer // not among what the bar shows
	err := p.SetUp(cmd.Context(), &out, force)
	bar.done()
	_, werr := out.WriteTo(cmd.OutOrStdout())
	return errors.Join(err, werr)
}

func setUpKernel(cmd *cobra.Command) error {
	if k, err := (guestkernel.Finder{}).Find(); err == nil {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "guest kernel: %s\n", k.Image)
		return err
	}
	bar := newProgress()
	pinned := firecracker.Pinned().Kernel
	bar.step("fetching the package " + pinned.Name)
	got, err := install.Kernel(cmd.Context(), pinned, firecracker.InstallDir)
	bar.done()
	if err != nil {
		return fmt.Errorf(`%w

No guest kernel could be set up. By hand: apt-get install %s
(the kernel is then found in /boot), or put one here:
  %s  (a bzImage or an uncompressed kernel)
  %s  (its folder of /lib/modules, with modules.dep)`, err, guestkernel.Package,
			filepath.Join(firecracker.InstallDir, "vmlinuz"), filepath.Join(firecracker.InstallDir, "modules"))
	}
	which := "the pinned one"
	if got != pinned {
		which = fmt.Sprintf("the distribution's newest, as it has %s %s no more", pinned.Name, pinned.Version)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "guest kernel: %s, of %s %s (%s), SHA-256 %s\n",
		filepath.Join(firecracker.InstallDir, "vmlinuz"), got.Name, got.Version, which, got.SHA256)
	return err
}

// checkFirecracker is doctor's.
func checkFirecracker() check {
	p := install.Programs{Release: firecracker.Pinned(), Dir: firecracker.InstallDir}
	switch s := p.Status(); {
	case s.Current:
		return check{"firecracker", checkOK, fmt.Sprintf("%s in %s", s.Release, p.Dir), ""}
	case len(s.Missing) == 0 && s.Release != "" && len(s.Changed) == 0:
		return check{"firecracker", checkWarn, fmt.Sprintf("%s in %s, Skep is tested with %s", s.Release, p.Dir, p.Release.Version), "skep setup"}
	case len(s.Missing) == 0:
		return check{"firecracker", checkWarn, fmt.Sprintf("in %s, %s; Skep is tested with %s", p.Dir, s, p.Release.Version), "skep setup --force"}
	}
	path, err := exec.LookPath("firecracker")
	if err == nil {
		_, err = exec.LookPath("jailer")
	}
	if err != nil {
		return check{"firecracker", checkWarn, "not found; needed by the firecracker driver", "skep setup"}
	}
	return check{"firecracker", checkOK, path, ""}
}
