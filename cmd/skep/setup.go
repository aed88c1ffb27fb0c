package main

import (
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
  vmlinuz, modules      the kernel of the package %s, checked
                        by apt, if this machine has none; it is not installed
                        as this machine's own kernel

Without a way to the internet, fetch the archive elsewhere and give it with
--archive; what is missing, and from where, is said by name.`, firecracker.InstallDir, firecracker.Pinned().Version, guestkernel.Package),
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
	if p.Installed() && !force && p.Archive == "" {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "firecracker, jailer: in %s already (--force replaces them)\n", p.Dir)
		return err
	}
	bar := newProgress()
	bar.step("fetching Firecracker " + p.Release.Version)
	err := p.Install(cmd.Context())
	bar.done()
	if err != nil {
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
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "firecracker, jailer: %s, in %s\n", p.Release.Version, p.Dir)
	return err
}

func setUpKernel(cmd *cobra.Command) error {
	if k, err := (guestkernel.Finder{}).Find(); err == nil {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "guest kernel: %s\n", k.Image)
		return err
	}
	bar := newProgress()
	bar.step("fetching the package " + guestkernel.Package)
	err := install.Kernel(cmd.Context(), firecracker.InstallDir)
	bar.done()
	if err != nil {
		return fmt.Errorf(`%w

No guest kernel could be set up. By hand: apt-get install %s
(the kernel is then found in /boot), or put one here:
  %s  (a bzImage or an uncompressed kernel)
  %s  (its folder of /lib/modules, with modules.dep)`, err, guestkernel.Package,
			filepath.Join(firecracker.InstallDir, "vmlinuz"), filepath.Join(firecracker.InstallDir, "modules"))
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "guest kernel: %s\n", filepath.Join(firecracker.InstallDir, "vmlinuz"))
	return err
}

// checkFirecracker is doctor's.
func checkFirecracker() check {
	if (install.Programs{Dir: firecracker.InstallDir}).Installed() {
		return check{"firecracker", checkOK, firecracker.InstallDir, ""}
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
