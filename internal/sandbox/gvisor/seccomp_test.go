package gvisor

import (
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/runsc/boot/filter"
	"gvisor.dev/gvisor/runsc/boot/filter/config"
	runscconfig "gvisor.dev/gvisor/runsc/config"
)

// TestSeccompProgram builds the program as gVisor does at a start, and
// compares: a new gVisor, or another configuration, needs another one.
func TestSeccompProgram(t *testing.T) {
	if seccompProgram.Name == "" {
		t.Skip("no program for this processor")
	}
	if runscconfig.CgoEnabled {
		t.Skip("the program is for a build without cgo")
	}
	const again = "run: go generate ./internal/sandbox/gvisor"
	c, err := platform.Lookup(platformName)
	if err != nil {
		t.Fatal(err)
	}
	opt := config.Options{Platform: c.PrecompiledSeccompInfo()[0], HostFilesystem: true, ControllerFD: 5}
	if key := opt.ConfigKey(); key != seccompProgram.Name {
		t.Fatalf("gVisor looks for %s, the program is for %s: %s", key, seccompProgram.Name, again)
	}
	rules, deny := config.Rules(opt)
	want, _, err := (&seccomp.Program{
		RuleSets: []seccomp.RuleSet{{Rules: deny}, {Rules: rules, Action: seccomp.Allow}},
		Options:  config.SeccompOptions(opt),
	}).Build()
	if err != nil {
		t.Fatal(err)
	}
	useSeccompProgram()
	p, ok := filter.GetPrecompiled(opt.ConfigKey())
	if !ok {
		t.Fatal("gVisor does not find the program")
	}
	got, err := p.RenderInstructions(opt.Vars())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the program of %d instructions is not the one of %d that gVisor builds: %s", len(got), len(want), again)
	}
}
