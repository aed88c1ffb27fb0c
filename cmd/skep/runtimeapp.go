package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/snapfaas/images"
	"github.com/skep-dev/skep/internal/snapfaas/runtimes"
	"github.com/skep-dev/skep/internal/snapfaas/taps"
)

// imageOptions are what builds of images have in common.
func imageOptions(g *globals, out string, verbose bool, p *progress) images.Options {
	o := images.Options{Out: out, CacheDir: baseCache(g), Progress: p.step}
	if verbose {
		o.Log = io.Writer(os.Stderr)
	}
	return o
}

// built ends a command that made a file.
func built(cmd *cobra.Command, out string, p *progress, err error) error {
	p.done()
	if err != nil {
		return err
	}
	st, err := os.Stat(out)
	if err == nil {
		fmt.Fprintf(cmd.OutOrStdout(), "%s\t%s\n", out, size(st.Size()))
	}
	return err
}

func newRuntime(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "runtime",
		Short: "Build root file systems with a language runtime, for singlevm and multivm",
	}
	var o images.RuntimeOptions
	var verbose bool
	build := &cobra.Command{
		Use:   "build python3|nodejs|go|java OUT",
		Short: "Build a root file system with a language runtime",
		Long: `Build a root file system: Debian's packages of the language and a small program
that runs an app, with the snapshot points language (the runtime is up) and app
(the app is imported). The packages are fetched once and kept.

An app is loaded from a disk of its own, or is part of the image with --app.`,
		Example: `  skep runtime build python3 python3.img
  skep runtime build python3 numpy.img --package python3-numpy
  skep runtime build nodejs whole.img --app ./hello`,
		Args:              exactly("the runtime", "the file to write"),
		ValidArgsFunction: cobra.FixedCompletions(runtimes.Names(), cobra.ShellCompDirectiveDefault),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := runtimes.Source(args[0]); err != nil {
				return coded(exitUsage, err)
			}
			p := newProgress()
			defer p.done()
			o.Name, o.Options = args[0], imageOptions(g, args[1], verbose, p)
			return built(cmd, args[1], p, images.BuildRuntime(cmd.Context(), o))
		},
	}
	build.Flags().StringVar(&o.App, "app", "", "folder of an app to have in the image, for snapshots of both in one")
	build.Flags().StringArrayVar(&o.Packages, "package", nil, "Debian package to install too, may be repeated; not for go")
	build.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the output of the tools that run")
	cmd.AddCommand(build)
	return tool(cmd)
}

func newApp(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "app",
		Short: "Build disks with an app, for singlevm and multivm",
	}
	var runtime string
	var verbose bool
	build := &cobra.Command{
		Use:   "build DIR OUT",
		Short: "Build a disk from the folder of an app",
		Long: `Build a small file system from the folder of an app:

  python3   workload.py with handle(obj); requirements.txt
  nodejs    workload.js that exports handle(obj); package.json
  java      Workload.java, .class or jars: a class Workload with handle(Object);
            pom.xml
  go        a module whose program speaks with the runtime over standard input and
            output, or such a program of any language, named workload

What requirements.txt, package.json, pom.xml and go.mod ask for is fetched, and
becomes part of the disk. The same folder gives the same bytes, if those files say
which versions.`,
		Example: `  skep app build ./hello hello.img
  skep app build ./functions/snapfaas/hello-go hello-go.img --runtime go`,
		Args: exactly("the app's folder", "the file to write"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := newProgress()
			defer p.done()
			return built(cmd, args[1], p, images.BuildApp(cmd.Context(),
				images.AppOptions{Options: imageOptions(g, args[1], verbose, p), Dir: args[0], Runtime: runtime}))
		},
	}
	build.Flags().StringVar(&runtime, "runtime", "", "language: python3, nodejs, go or java (default: by the folder's files)")
	build.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the output of the tools that run")
	_ = build.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(runtimes.Names(), cobra.ShellCompDirectiveNoFileComp))
	empty := &cobra.Command{
		Use:   "empty OUT",
		Short: "Build the placeholder: a disk without an app, to make language snapshots with",
		Args:  exactly("the file to write"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := newProgress()
			defer p.done()
			return built(cmd, args[0], p, images.WriteEmpty(cmd.Context(), imageOptions(g, args[0], false, p)))
		},
	}
	cmd.AddCommand(build, empty)
	return tool(cmd)
}

func newNetwork() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "network",
		Short: "Set up the network for VMs of other tools",
	}
	var bridge string
	var remove bool
	tap := &cobra.Command{
		Use:   "taps N",
		Short: "Make the TAP devices tap0 to tap<N-1> on a bridge, as SnapFaaS's script does",
		Long: `Make the TAP devices tap0 to tap<N-1>, up and on a bridge, as SnapFaaS's script
does. Devices that are there are put in order.

Skep's own VMs do not need them: each has a TAP device in a network namespace of
its own.`,
		Example: `  skep network taps 16                     tap0 to tap15 on docker0
  skep network taps 16 --bridge br0
  skep network taps 16 --delete`,
		Args: exactly("the number of devices"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 1 || n > taps.Max {
				return coded(exitUsage, fmt.Errorf("%q is not a number from 1 to %d", args[0], taps.Max))
			}
			if os.Geteuid() != 0 {
				return errors.New("not root: network devices cannot be made or removed (try sudo)")
			}
			if remove {
				return taps.Remove(n)
			}
			if err := taps.Setup(n, bridge); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "tap0 to tap%d are ready\n", n-1)
			return nil
		},
	}
	tap.Flags().StringVar(&bridge, "bridge", "docker0", "bridge to put them on; \"\" for none")
	tap.Flags().BoolVar(&remove, "delete", false, "remove the devices instead")
	cmd.AddCommand(tap)
	return tool(cmd)
}
