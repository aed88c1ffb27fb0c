package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/snapfaas/controller"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
	"github.com/skep-dev/skep/internal/snapfaas/runner"
	"github.com/skep-dev/skep/internal/snapfaas/single"
	"github.com/skep-dev/skep/internal/snapfaas/snapdir"
)

// ignoredNames are SnapFaaS's flags with a value for which there is no use here.
var ignoredNames = [...]string{"tap", "mac", "vsock_cid"}

// odirectNames are those without one.
var odirectNames = [...]string{"odirect_base", "no_odirect_diff", "no_odirect_root", "no_odirect_app"}

// vmName is what --id may be: a part of the guest's host name.
var vmName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,48}[A-Za-z0-9])?$`)

// singleFlags are singlevm's.
type singleFlags struct {
	vmmFlags
	conf                     runner.Config
	rootfs, appfs, id        string
	loadDir, diffDirs, point string
	dumpWS                   string
	network                  bool
	odirect                  [len(odirectNames)]bool
	ignored                  [len(ignoredNames)]string
	firerunner, dumpDir      string
}

// newestFolder is what --dump_ws is without a folder.
const newestFolder = "newest"

func newSingleVM(g *globals) *cobra.Command { return new(singleFlags).command(g) }

// command is singlevm, with these flags.
func (s *singleFlags) command(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "singlevm --rootfs IMAGE [--appfs IMAGE]",
		Short: "Run one function in one micro-VM, with requests from standard input (SnapFaaS)",
		Long: `Run one function in one micro-VM. Requests are JSON, one a line, on standard
input; answers go to standard output, one a line, and times to standard error.

The same tool makes snapshots (--dump_dir, --dump_ws) and starts from them
(--load_dir). It is also what skep is when it is called by the name singlevm.`,
		Example: `  skep runtime build python3 python3.img
  skep app build ./hello hello.img
  singlevm --rootfs python3.img --appfs hello.img < requests.json

  mkdir base diff
  singlevm --rootfs python3.img --dump_dir base --force_exit
  singlevm --rootfs python3.img --appfs hello.img --load_dir base --dump_dir diff --force_exit
  singlevm --rootfs python3.img --appfs hello.img --load_dir base,diff < requests.json`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && s.dumpWS == newestFolder: // it may stand before a folder
				s.dumpWS = args[0]
			case len(args) > 0:
				return fmt.Errorf("unknown argument %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd, g) },
	}
	f := cmd.Flags()
	s.add(f)
	f.StringVarP(&s.rootfs, "rootfs", "r", "", "image with the language runtime (skep runtime build)")
	f.StringVar(&s.appfs, "appfs", "", "image with the app (skep app build); the default is a placeholder without one")
	f.StringVar(&s.id, "id", "1234", "name of the VM")
	f.Int64Var(&s.conf.MemoryMiB, "mem_size", 128, "memory in MB")
	f.Int64Var(&s.conf.VCPUs, "vcpu_count", 1, "virtual processors")
	f.BoolVar(&s.network, "network", false, "let the guest reach public addresses")
	for i, name := range ignoredNames {
		f.StringVar(&s.ignored[i], name, "", "without effect: each VM has a network, and a channel to its host, of its own")
	}
	f.StringVar(&s.firerunner, "firerunner", "", "firerunner's program (default: skep itself)")
	f.StringVar(&s.loadDir, "load_dir", "", "start from the snapshot in this folder; with diffs BASE,DIFF")
	f.StringVar(&s.diffDirs, "diff_dirs", "", "diffs to lay on the snapshot of --load_dir")
	f.StringVar(&s.dumpDir, "dump_dir", "", "write a snapshot to this folder, which must exist: a diff if one was loaded")
	f.StringVar(&s.point, "snapshot_point", "", "when --dump_dir is done: language or app (default: language after a boot, app after a restore)")
	f.BoolVar(&s.conf.Load.CopyBase, "copy_base", false, "copy the base's memory before the VM runs, instead of mapping it")
	f.BoolVar(&s.conf.Load.CopyDiff, "copy_diff", false, "copy the diffs' memory before the VM runs, as is done anyway; with =false it is loaded page by page")
	f.BoolVar(&s.conf.Load.WorkingSet, "load_ws", false, "load the recorded working set ahead")
	f.StringVar(&s.dumpWS, "dump_ws", "", "record what the first request touches, in the newest `folder` loaded, which may be named here")
	f.Lookup("dump_ws").NoOptDefVal = newestFolder
	f.BoolVar(&s.conf.Dump.Exit, "force_exit", false, "end after the snapshot instead of taking requests")
	f.DurationVar(&s.conf.Boot, "boot_timeout", runner.DefaultBoot, "how long the start may take")
	f.DurationVar(&s.conf.Request, "request_timeout", runner.DefaultRequest, "how long one request may take")
	for i, name := range odirectNames {
		f.BoolVar(&s.odirect[i], name, false, "without effect: memory is mapped, and shared between VMs")
	}
	f.SetNormalizeFunc(snapfaasNames)
	_ = cmd.MarkFlagRequired("rootfs")
	return tool(cmd)
}

// complete makes the configuration of the flags.
func (s *singleFlags) complete(cmd *cobra.Command, g *globals) (err error) {
	c := &s.conf
	if !vmName.MatchString(s.id) {
		return coded(exitUsage, fmt.Errorf("--id: %.60q is not a name: letters, digits and -, up to 50", s.id))
	}
	c.Hostname = "vm-" + s.id
	if c.Rootfs, err = diskPath("--rootfs", s.rootfs); err != nil {
		return coded(exitUsage, err)
	}
	if s.appfs != "" {
		if c.App, err = diskPath("--appfs", s.appfs); err != nil {
			return coded(exitUsage, err)
		}
	} else if c.App, err = placeholder(cmd, g); err != nil {
		return fmt.Errorf("placeholder for --appfs: %w", err)
	}
	c.NoApp = s.appfs == ""
	if s.diffDirs != "" && s.loadDir == "" {
		return coded(exitUsage, errors.New("--diff_dirs: it needs the base in --load_dir"))
	}
	c.Load.Dirs = append(controller.SplitDirs(s.loadDir), controller.SplitDirs(s.diffDirs)...)
	c.Load.LazyDiff = cmd.Flags().Changed("copy_diff") && !c.Load.CopyDiff
	c.Dump.Point, c.Dump.Dir = guest.Point(s.point), s.dumpDir
	if c.Dump.WorkingSet = s.dumpWS; s.dumpWS == newestFolder && len(c.Load.Dirs) > 0 {
		c.Dump.WorkingSet = c.Load.Dirs[len(c.Load.Dirs)-1]
	}
	if err := positive(cmd.Flags(), "boot_timeout", "request_timeout"); err != nil {
		return coded(exitUsage, err)
	}
	paths := []*string{&c.Dump.Dir, &c.Dump.WorkingSet}
	for i := range c.Load.Dirs {
		paths = append(paths, &c.Load.Dirs[i])
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if err := c.Validate(); err != nil {
		return coded(exitUsage, err)
	}
	if err := s.checkSets(c); err != nil {
		return coded(exitUsage, err)
	}
	return coded(exitUsage, checkDirs(c))
}

// checkDirs finds before anything is started what is wrong with the folders of
// snapshots.
func checkDirs(c *runner.Config) error {
	if c.Dump.Dir != "" {
		if err := snapdir.CheckDump(c.Dump.Dir, c.Load.Dirs); err != nil {
			return err
		}
	}
	if len(c.Load.Dirs) == 0 {
		return nil
	}
	s, err := snapdir.Open(c.Load.Dirs...)
	if err != nil {
		return fmt.Errorf("--load_dir: %w", err)
	}
	if c.Dump.WorkingSet != "" {
		if err := s.CheckDumpSet(c.Dump.WorkingSet); err != nil {
			return err
		}
	}
	if c.Load.WorkingSet && !c.Load.CopyBase {
		if _, err := s.Image(true); err != nil {
			return fmt.Errorf("--load_ws: %w", err)
		}
	}
	return nil
}

// ineffective says which of the flags given have no effect, and why.
func (s *singleFlags) ineffective() (lines []string) {
	for i, name := range odirectNames {
		if s.odirect[i] {
			lines = append(lines, fmt.Sprintf("--%s has no effect here: disks and memory are read through the page cache", name))
		}
	}
	if s.kernelArgs != "" && len(s.conf.Load.Dirs) > 0 {
		lines = append(lines, "--kernel_args has no effect here: a snapshot's kernel has been booted already")
	}
	for i, name := range ignoredNames {
		if s.ignored[i] != "" {
			lines = append(lines, fmt.Sprintf("--%s has no effect here: each VM has a network of its own, --network opens it to public addresses", name))
		}
	}
	return lines
}

func (s *singleFlags) run(cmd *cobra.Command, g *globals) (err error) {
	log := cmd.ErrOrStderr()
	if err := s.check(log); err != nil {
		return err
	}
	if err := s.complete(cmd, g); err != nil {
		return err
	}
	for _, line := range s.ineffective() {
		fmt.Fprintln(log, line)
	}
	h, parent, err := openHost(cmd, g, &s.vmmFlags, s.firerunner, 0, toolLog(slog.LevelWarn))
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), time.Minute)
		defer cancel()
		err = errors.Join(err, h.Close(clean))
	}()
	vm, err := parent.Start(cmd.Context(), s.conf, s.network)
	if err != nil {
		return fmt.Errorf("unable to launch the VM: %w", err)
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	printReady(log, vm.Ready)
	if s.conf.Dump.Exit {
		fmt.Fprintln(log, "Shutting down vm...")
		return nil
	}
	totals, err := single.Run(cmd.Context(), vm, cmd.InOrStdin(), cmd.OutOrStdout(), log)
	fmt.Fprintln(log, "***********************************************")
	fmt.Fprintf(log, "Total requests: %d, Total responses: %d\n", totals.Requests, totals.Responses)
	fmt.Fprintln(log, "***********************************************")
	fmt.Fprintln(log, "Shutting down vm...")
	if cmd.Context().Err() != nil {
		err = errors.New("interrupted")
	}
	if err == nil && totals.Requests != totals.Responses {
		err = fmt.Errorf("%d of %d requests failed", totals.Requests-totals.Responses, totals.Requests)
	}
	if s.conf.Dump.WorkingSet != "" && !vm.Recorded() {
		err = errors.Join(err, errors.New("--dump_ws: nothing was recorded: no request has reached the function (they are read from standard input)"))
	}
	return err
}

func printReady(w io.Writer, r runner.Ready) {
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	for _, p := range r.Phases {
		if p.Name == "in all" {
			fmt.Fprintf(w, "VM ready in: %d us\n", p.Took.Microseconds())
			continue
		}
		fmt.Fprintf(w, "%s: %d us\n", p.Name, p.Took.Microseconds())
	}
}
