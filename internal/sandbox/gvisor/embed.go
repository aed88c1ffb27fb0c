package gvisor

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/google/subcommands"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/version"
)

// selfExe is how runsc calls the executable that it is part of.
const selfExe = "/proc/self/exe"

// MaybeRunsc turns this process into gVisor's runsc if it was started as one,
// and then does not return. It must be the first thing that main does, and
// that TestMain does in every test that makes gVisor sandboxes: the sandbox
// processes are further copies of the running executable.
//
// A process is runsc if its first argument is "runsc" ("skep runsc --help"
// serves those who debug), or if it has one of the names under which runsc
// starts itself.
func MaybeRunsc() {
	args, ok := runscArgs(os.Args)
	if !ok {
		return
	}
	os.Args = args
	cli.Run(nil, commands(), []subcommands.Command{})
	os.Exit(128) // cli.Run exits; not to be reached
}

// runscArgs says whether a process with these arguments is to be runsc, and
// with which arguments.
func runscArgs(args []string) ([]string, bool) {
	if len(args) == 0 {
		return nil, false
	}
	switch {
	case len(args) > 1 && args[1] == "runsc":
		return append([]string{"runsc"}, args[2:]...), true
	case strings.HasPrefix(filepath.Base(args[0]), "runsc"),
		// How runsc starts its helper. Others may start us by this name, too.
		len(args) > 1 && args[0] == selfExe && args[1] == (*sentrycmd.Umount)(nil).Name():
		return args, true
	}
	return nil, false
}

// commands are the runsc commands that the driver, runsc itself, or somebody
// who looks into a live sandbox needs. Leaving out the others halves what
// gVisor adds to the executable. There is no gofer: the root file system is an
// EROFS image that the sandbox reads by itself, and there are no bind mounts.
func commands() map[util.SubCommand]string {
	const internal, debugging = "internal use only", "debug"
	return map[util.SubCommand]string{
		new(launch):           internal,
		new(boot):             internal,
		new(sentrycmd.Umount): internal,
		new(cmd.Debug):        debugging,
		new(cmd.State):        debugging,
		new(cmd.PS):           debugging,
	}
}

// Version identifies the gVisor in this executable. A snapshot can only be
// restored by the version that made it. It is the version of gVisor's module,
// or, where the executable does not know that (tests), the label that the
// linker was given for gvisor.dev/gvisor/runsc/version.version.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "gvisor.dev/gvisor" {
				if m.Replace != nil {
					m = m.Replace
				}
				return m.Version
			}
		}
	}
	return version.Version()
}
