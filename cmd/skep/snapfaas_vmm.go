package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/daemon"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/gvisor"
	"github.com/skep-dev/skep/internal/sandbox/gvisor/runscbin"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/snapfaas/host"
	"github.com/skep-dev/skep/internal/snapfaas/runner"
)

// sandboxNames are the drivers that the tools can use, the default first.
var sandboxNames = []string{qemu.Name, gvisor.Name}

// vmmFlags say how micro-VMs run, to all three tools.
type vmmFlags struct {
	sandbox                   string // the driver's name
	kernel, kernelArgs, accel string
	cache                     string // of the driver
	proved                    bool   // KVM works, the parent has seen it
}

func (v *vmmFlags) add(f *pflag.FlagSet) {
	f.StringVar(&v.sandbox, "sandbox", sandboxNames[0], "what runs the functions: "+strings.Join(sandboxNames, " or "))
	f.StringVarP(&v.kernel, "kernel", "k", v.kernel, "the guests' kernel (default: the newest cloud kernel in /boot)")
	f.StringVarP(&v.kernelArgs, "kernel_args", "c", v.kernelArgs, "further arguments for the kernel, separated by spaces, or, if there is none, by commas")
	f.StringVar(&v.accel, "accel", "auto", "acceleration of QEMU: auto, kvm or tcg")
	f.StringVar(&v.cache, "cache", "", "folder for the unpacked kernel and the like (default: skep's own)")
}

// args are the flags again.
func (v *vmmFlags) args() []string {
	args := []string{"--sandbox=" + v.sandbox, "--accel=" + v.accel, "--cache=" + v.cache, fmt.Sprintf("--accel_proved=%t", v.proved)}
	if v.kernel != "" {
		args = append(args, "--kernel="+v.kernel)
	}
	if v.kernelArgs != "" {
		args = append(args, "--kernel_args="+v.kernelArgs)
	}
	return args
}

// check looks at flags that are not for every driver, and says those that have
// no effect.
func (v *vmmFlags) check(log io.Writer) error {
	if !slices.Contains(sandboxNames, v.sandbox) {
		return coded(exitUsage, fmt.Errorf("--sandbox: %q is none of %s", v.sandbox, strings.Join(sandboxNames, ", ")))
	}
	if !slices.Contains(daemon.Accels, v.accel) {
		return coded(exitUsage, fmt.Errorf("--accel: %q is none of %s", v.accel, strings.Join(daemon.Accels, ", ")))
	}
	if v.sandbox != gvisor.Name {
		return nil
	}
	for _, f := range []struct{ name, value string }{{"kernel", v.kernel}, {"kernel_args", v.kernelArgs}} {
		if f.value != "" {
			fmt.Fprintf(log, "--%s has no effect here: gVisor is a kernel itself\n", f.name)
		}
	}
	v.kernel, v.kernelArgs = "", ""
	return nil
}

// checkSets refuses what needs working sets where there are none.
func (v *vmmFlags) checkSets(c *runner.Config) error {
	const why = "gVisor cannot see which pages are touched: it copies all of them while the function runs"
	switch {
	case v.sandbox != gvisor.Name:
		return nil
	case c.Dump.WorkingSet != "":
		return errors.New("--dump_ws: " + why)
	case c.Load.WorkingSet:
		return errors.New("--load_ws: " + why)
	}
	return nil
}

// driver makes the driver of the flags.
func (v *vmmFlags) driver(g *globals, log *slog.Logger) (sandbox.Driver, error) {
	if v.cache == "" {
		v.cache = filepath.Join(filepath.Dir(baseCache(g)), v.sandbox)
	}
	var err error
	for _, p := range []*string{&v.cache, &v.kernel} {
		if *p != "" {
			if *p, err = filepath.Abs(*p); err != nil {
				return nil, err
			}
		}
	}
	if v.sandbox == gvisor.Name {
		return v.gvisor()
	}
	return qemu.New(qemu.Config{
		CacheDir: v.cache, Kernel: v.kernel, Accel: qemu.Accel(v.accel), Proved: v.proved, Log: log,
		KernelArgs: kernelArgs(v.kernelArgs),
	})
}

// gvisor makes that driver, with the program that is part of this one.
func (v *vmmFlags) gvisor() (sandbox.Driver, error) {
	if err := os.MkdirAll(v.cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(v.cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // which unlocks it
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	runsc, err := runscbin.Extract(filepath.Join(v.cache, "runsc"))
	if err != nil {
		return nil, err
	}
	return gvisor.New(gvisor.Config{Runsc: runsc}), nil
}

// reapers remove what VMs of any of the tools' drivers left.
type reapers []host.Reaper

// Reap implements host.Reaper.
func (all reapers) Reap(ctx context.Context, s sandbox.State) error {
	var errs []error
	for _, r := range all {
		errs = append(errs, r.Reap(ctx, s))
	}
	return errors.Join(errs...)
}

// kernelArgs splits a list of a kernel's arguments. SnapFaaS has commas between
// them; but a value may hold some, as in "console=ttyS0,115200 quiet".
func kernelArgs(s string) []string {
	if strings.ContainsAny(strings.TrimSpace(s), " \t\n") {
		return strings.Fields(s)
	}
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
}
