package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skep-dev/skep/internal/sandbox/gvisor"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/snapfaas/host"
	"github.com/skep-dev/skep/internal/snapfaas/images"
	"github.com/skep-dev/skep/internal/snapfaas/runner"
)

// snapfaasTools are the commands that skep also is when it is called by their
// name, as by a link.
var snapfaasTools = []string{"singlevm", "multivm", "firerunner"}

// asCalled turns `singlevm ...` into `skep singlevm ...`.
func asCalled(args []string) []string {
	if len(args) > 0 && slices.Contains(snapfaasTools, filepath.Base(args[0])) {
		return append([]string{"skep", filepath.Base(args[0])}, args[1:]...)
	}
	return args
}

// snapfaasNames lets flags be written with - or _, and by their other names in
// SnapFaaS.
func snapfaasNames(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	name = strings.ReplaceAll(name, "-", "_")
	other := map[string]string{
		"memory": "mem_size", "vcpu": "vcpu_count", "vcpus": "vcpu_count",
		"copy_base_memory": "copy_base", "copy_diff_memory": "copy_diff", "diff_dir": "diff_dirs",
		// those of skep itself stay as they are
		"data_dir": "data-dir",
	}[name]
	if other != "" {
		name = other
	}
	return pflag.NormalizedName(name)
}

// positive refuses times of flags that are none.
func positive(f *pflag.FlagSet, names ...string) error {
	var errs []error
	for _, name := range names {
		if d, err := f.GetDuration(name); err != nil || d <= 0 {
			errs = append(errs, errors.Join(err, fmt.Errorf("--%s: %v is no time to wait: want more than 0, such as 90s", name, d)))
		}
	}
	return errors.Join(errs...)
}

// tool finishes a command that needs no running Skep: its help is silent about
// the flags that say which one to talk to, and a command of others refuses what
// is none.
func tool(cmd *cobra.Command) *cobra.Command {
	usage := cmd.UsageFunc()
	for _, c := range append([]*cobra.Command{cmd}, cmd.Commands()...) {
		c.SetUsageFunc(func(c *cobra.Command) error {
			c.InheritedFlags().VisitAll(func(f *pflag.Flag) {
				if f.Hidden = f.Name != "data-dir"; !f.Hidden {
					f.Usage = "folder for what is kept and what runs, also $SKEP_DATA (default: Skep's own)"
				}
			})
			return usage(c)
		})
	}
	if cmd.HasSubCommands() {
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	return cmd
}

// exactly is cobra.ExactArgs, and names the arguments.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		return fmt.Errorf("want %s, not %d arguments: %s", strings.Join(names, " and "), len(args), cmd.UseLine())
	}
}

// toolLog is for what goes wrong beside the work.
func toolLog(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// openHost opens what a tool needs of the machine, and returns how to start
// firerunners.
func openHost(cmd *cobra.Command, g *globals, v *vmmFlags, firerunner string, pool int, log *slog.Logger) (*host.Host, runner.Parent, error) {
	var p runner.Parent
	if os.Geteuid() != 0 {
		return nil, p, errors.New("not root: VMs need networks and cgroups (try sudo)")
	}
	d, err := v.driver(g, log)
	if err != nil {
		return nil, p, err
	}
	if d, ok := d.(*qemu.Driver); ok {
		accel, err := d.Accel(cmd.Context())
		if err != nil {
			return nil, p, err
		}
		// Not each child is to find out again.
		v.accel, v.proved = string(accel), accel == qemu.AccelKVM
	}
	if firerunner == "" {
		if firerunner, err = os.Executable(); err != nil {
			return nil, p, err
		}
	} else if st, err := os.Stat(firerunner); err != nil {
		return nil, p, coded(exitUsage, fmt.Errorf("--firerunner: %w", err))
	} else if st.IsDir() || st.Mode()&0o111 == 0 {
		return nil, p, coded(exitUsage, fmt.Errorf("--firerunner: %s is not a program", firerunner))
	}
	h, err := host.Open(cmd.Context(), host.Config{
		Base: filepath.Join(g.runDir(), "snapfaas"), Pool: pool, Log: log, Link: d.Capabilities().Link,
		Reaper: reapers{&qemu.Driver{}, &gvisor.Driver{}}, // neither needs anything for that
	})
	if err != nil {
		return nil, p, err
	}
	return h, runner.Parent{Host: h, Program: firerunner, Args: v.args(), Stderr: os.Stderr}, nil
}

// diskPath makes a path of an image absolute and looks if it is there.
func diskPath(flag, path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s: %s is not a file", flag, path)
	}
	return filepath.Abs(path)
}

// placeholder makes the disk of VMs without an app.
func placeholder(cmd *cobra.Command, g *globals) (string, error) {
	dir := filepath.Join(filepath.Dir(baseCache(g)), "snapfaas")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "empty.erofs")
	if _, err := os.Stat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return path, err
	}
	return path, images.WriteEmpty(cmd.Context(), images.Options{Out: path})
}

func newFirerunner(g *globals) *cobra.Command {
	v := &vmmFlags{}
	cmd := &cobra.Command{
		Use:    "firerunner",
		Short:  "Own one micro-VM: singlevm and multivm start it, it is never run by hand",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if isTerminal(os.Stdin) {
				return coded(exitUsage, errors.New("firerunner is not run by hand: singlevm and multivm start it"))
			}
			if err := v.check(os.Stderr); err != nil {
				return err
			}
			d, err := v.driver(g, toolLog(slog.LevelWarn))
			if err != nil {
				return err
			}
			return runner.Serve(cmd.Context(), d, os.Stdin, os.Stdout)
		},
	}
	v.add(cmd.Flags())
	cmd.Flags().BoolVar(&v.proved, "accel_proved", false, "KVM has been proved to work")
	cmd.Flags().SetNormalizeFunc(snapfaasNames)
	return tool(cmd)
}
