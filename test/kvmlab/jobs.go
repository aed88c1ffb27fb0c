package main

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/test/kvmlab/lab"
)

// job is a package's tests.
type job struct {
	pkg      string
	run      tests  // without -run
	short    []part // with -short
	tools    []string
	env      []string
	optional string // left out where a tool is missing, which this says how to get
}

// tests are tests that must pass, by their whole names. The machine runs no
// others, and fails where one was skipped or is not there. None are all.
type tests []string

// part is what one machine runs of a job, beside others.
type part struct {
	name string // "" if it is the only one
	tests
}

// under are tests, or subtests of one.
func under(parent string, names ...string) (t tests) {
	for _, n := range names {
		t = append(t, parent+"/"+n)
	}
	return t
}

// pattern is the regular expression for go test's -run.
func (t tests) pattern() string {
	if len(t) == 0 {
		return "."
	}
	var all []string
	for _, name := range t {
		var levels []string
		for level := range strings.SplitSeq(name, "/") {
			levels = append(levels, "^"+regexp.QuoteMeta(level)+"$")
		}
		all = append(all, strings.Join(levels, "/"))
	}
	return strings.Join(all, "|")
}

// groups are names for several jobs.
var groups = map[string][]string{
	"cgroup2": {"gvisor", "runc", "cgroup"}, // the longest first
}

const (
	conformance = "TestConformance"
	snapshot    = conformance + "/Snapshot"
)

// What shows most for its time: nested in an emulated machine everything takes
// ten times as long. KVMLAB='-run .' is all. Each of the suite's tests looks for
// what was left behind, too.
var (
	nested = slices.Concat(
		under(conformance, "Probe", "HTTP", "Exec", "Dial", "Memory", "Stages"),
		under(snapshot, "Compatibility", "Record", "Modes", "Again", "Frozen"),
	)
	limitsShort = []part{{tests: under(conformance, "HTTP", "Memory", "Stall", "CPU", "PIDs", "Stages")}}
)

// nestedShort is what CI runs, the longest first; modes are what to restore in
// that was restored before. Not pager: each of thousands of page faults takes
// milliseconds there.
func nestedShort(modes ...string) []part {
	return []part{
		{"snapshot", append(under(snapshot, "Compatibility", "Record", "Frozen"), snapshot+"/Modes/map+hint")},
		{"again", under(snapshot+"/Again", modes...)},
		{"life", under(conformance, "HTTP", "Exec", "Dial")},
	}
}

var packages = map[string]job{
	"qemu": {
		pkg: "internal/sandbox/qemu", run: nested, short: nestedShort("map", "map+hint", "eager"),
		tools: []string{"qemu-system-x86_64"}, env: []string{"SKEP_TEST_ACCEL=kvm"},
	},
	"firecracker": {
		pkg: "internal/sandbox/firecracker", short: nestedShort("map", "map+hint"),
		run:   slices.Concat(nested, tests{"TestOptions/HTTP", "TestHugePages/HTTP"}),
		tools: []string{"firecracker", "jailer"}, env: []string{"SKEP_TEST_ACCEL=kvm"},
		optional: "skep setup fetches it, or says what to place where",
	},
	// These need no KVM. The machine has nothing but cgroup v2, as new
	// distributions do, whatever the machine outside has.
	"cgroup": {pkg: "internal/cgroup", short: []part{{}}},
	"runc":   {pkg: "internal/sandbox/runc", short: limitsShort, tools: []string{"runc"}},
	"gvisor": {pkg: "internal/sandbox/gvisor", run: tests{conformance}, short: limitsShort},
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

// addJob builds a driver's tests and packs the tools they need. Each of the jobs
// has a machine of its own.
func (m *machine) addJob(ctx context.Context, o options, repo, bin, name string, d job) ([]lab.Job, error) {
	for _, t := range d.tools {
		p, err := findTool(guestkernel.Dir, t)
		if err != nil {
			return nil, err
		}
		if err := m.addTool(p); err != nil {
			return nil, err
		}
	}
	test := name + ".test"
	if err := build(ctx, repo, filepath.Join(bin, test), "test", "-c", module+d.pkg); err != nil {
		return nil, err
	}
	env := append([]string{
		searchPath,
		"HOME=/root", "TMPDIR=/tmp", "CI=true", testenv.ProgramsEnv + "=" + lab.BinDir,
		testenv.PatienceEnv + "=" + patience,
	}, d.env...)
	machine := func(name, pattern string, want tests) lab.Job {
		args := []string{path.Join(lab.BinDir, test), "-test.run", pattern, "-test.v", "-test.timeout", o.timeout.String()}
		return lab.Job{Name: name, Args: args, Env: env, Modules: modules, Tests: true, Want: want}
	}
	switch {
	case o.run != "":
		return []lab.Job{machine(name, o.run, nil)}, nil
	case !o.short:
		return []lab.Job{machine(name, d.run.pattern(), d.run)}, nil
	}
	var jobs []lab.Job
	for _, p := range d.short {
		of := name
		if p.name != "" {
			of += "-" + p.name
		}
		jobs = append(jobs, machine(of, p.pattern(), p.tests))
	}
	return jobs, nil
}

// findTool finds a program in a folder, which is where skep setup puts it, or on
// PATH.
func findTool(dir, name string) (string, error) {
	if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
		return p, nil
	}
	return exec.LookPath(name)
}
