package main

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/test/kvmlab/lab"
)

// job is a package's tests.
type job struct {
	pkg      string
	run      string // the tests, without -run
	short    string // the tests with -short
	tools    []string
	env      []string
	optional string // left out where a tool is missing, which this says how to get
}

// groups are names for several jobs.
var groups = map[string][]string{
	"cgroup2": {"cgroup", "runc", "gvisor"},
}

// What shows most for its time: nested in an emulated machine everything takes
// ten times as long. KVMLAB='-run .' is all.
const (
	nested = "TestConformance$/^(Probe|HTTP|Exec|Dial|Memory|Stages)$|TestConformance$/^Snapshot$/^(Compatibility|Record|Modes|Again)$"
	// Every one of them looks for what was left behind. Not the mode pager:
	// each of thousands of page faults takes milliseconds there.
	nestedShort = `TestConformance$/^HTTP$|TestConformance$/^Snapshot$/^Modes$/^(map|map\+hint|eager)$`
	limitsShort = "TestConformance$/^(HTTP|Memory|Stall|CPU|PIDs|Stages)$"
)

var packages = map[string]job{
	"qemu": {
		pkg: "internal/sandbox/qemu", run: nested, short: nestedShort,
		tools: []string{"qemu-system-x86_64"}, env: []string{"SKEP_TEST_ACCEL=kvm"},
	},
	"firecracker": {
		pkg: "internal/sandbox/firecracker", run: nested + "|TestOptions$/^HTTP$|TestHugePages$/^HTTP$", short: nestedShort,
		tools: []string{"firecracker", "jailer"}, env: []string{"SKEP_TEST_ACCEL=kvm"},
		optional: "skep setup fetches it, or says what to place where",
	},
	// These need no KVM. The machine has nothing but cgroup v2, as new
	// distributions do, whatever the machine outside has.
	"cgroup": {pkg: "internal/cgroup", run: ".", short: "."},
	"runc":   {pkg: "internal/sandbox/runc", run: ".", short: limitsShort, tools: []string{"runc"}},
	"gvisor": {pkg: "internal/sandbox/gvisor", run: "TestConformance", short: limitsShort},
}

// jobNames are the jobs of a list with commas, in its order, each once.
func jobNames(list string) ([]string, error) {
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		if name == "" {
			continue
		}
		of, isGroup := groups[name]
		if !isGroup {
			of = []string{name}
		}
		for _, name := range of {
			if _, ok := packages[name]; !ok {
				all := slices.Concat(slices.Sorted(maps.Keys(packages)), slices.Sorted(maps.Keys(groups)))
				return nil, fmt.Errorf("-jobs: %q is none of %s", name, strings.Join(all, ", "))
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// patience is for tests' deadlines: everything takes ten times as long, and
// what itself virtualizes, more.
const patience = "4"

// searchPath is the PATH of all jobs.
const searchPath = "PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin:" + lab.BinDir

// addJob builds a driver's tests and packs the tools they need.
func (m *machine) addJob(ctx context.Context, o options, repo, bin, name string, d job) (lab.Job, error) {
	for _, t := range d.tools {
		p, err := findTool(guestkernel.Dir, t)
		if err != nil {
			return lab.Job{}, err
		}
		if err := m.addTool(p); err != nil {
			return lab.Job{}, err
		}
	}
	test := name + ".test"
	if err := build(ctx, repo, filepath.Join(bin, test), "test", "-c", module+d.pkg); err != nil {
		return lab.Job{}, err
	}
	pattern := d.run
	switch {
	case o.run != "":
		pattern = o.run
	case o.short:
		pattern = d.short
	}
	args := []string{path.Join(lab.BinDir, test), "-test.run", pattern, "-test.v", "-test.timeout", o.timeout.String()}
	env := append([]string{
		searchPath,
		"HOME=/root", "TMPDIR=/tmp", "CI=true", testenv.ProgramsEnv + "=" + lab.BinDir,
		testenv.PatienceEnv + "=" + patience,
	}, d.env...)
	return lab.Job{Name: name, Args: args, Env: env, Modules: modules}, nil
}

// findTool finds a program in a folder, which is where skep setup puts it, or on
// PATH.
func findTool(dir, name string) (string, error) {
	if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
		return p, nil
	}
	return exec.LookPath(name)
}
