package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/skep-dev/skep/internal/node/snapshots"
	"github.com/skep-dev/skep/internal/sandbox"
)

// profile is a choice of when snapshots are made and how they are restored.
// What a flag says goes before it.
type profile struct {
	name string
	said string // the flags that chose it
	// policy and restore are as snapshots.ParsePolicy and Options.SetRestore read
	// them; "": there are no snapshots.
	policy, restore string
}

// profiles are Skep's own choice, and what vHive does without flags, with
// -snapshots, and with -snapshots -upf: it makes a snapshot when it stops an
// instance that was booted, and maps its file; or, as REAP does, records what
// the first request needs, and has a pager load that ahead.
var profiles = []profile{
	{name: "default", policy: snapshots.DefaultPolicy.String(), restore: "auto"},
	{name: profileNone},
	{name: profileSnapshots, policy: "at-scale-down", restore: string(sandbox.RestoreMap)},
	{name: profileReap, policy: "at-scale-down", restore: string(sandbox.RestorePager)},
}

const (
	profileNone      = "none"
	profileSnapshots = "snapshots"
	profileReap      = "reap"
)

// Profiles are what Config.SnapshotProfile may be.
func Profiles() []string {
	var names []string
	for _, p := range profiles {
		names = append(names, p.name)
	}
	return names
}

func (p *profile) off() bool { return p.policy == "" }

// profile is the one that the flags choose. The error names flags that
// contradict each other.
func (c *Config) profile() (p profile, err error) {
	said, name := c.alias()
	switch {
	case c.UPF && c.Snapshots != nil && !*c.Snapshots:
		return p, errors.New("--upf contradicts --snapshots=false: leave one of them out")
	case c.UPF && c.Snapshots == nil && c.SnapshotProfile != profileReap:
		return p, fmt.Errorf("--upf: it goes with --snapshots: give both, or --snapshot-profile %s", profileReap)
	case name != "" && c.SnapshotProfile != "" && name != c.SnapshotProfile:
		return p, fmt.Errorf("%s means --snapshot-profile %s, which contradicts --snapshot-profile %s: leave one of them out", said, name, c.SnapshotProfile)
	case c.SnapshotProfile != "":
		name, said = c.SnapshotProfile, "--snapshot-profile "+c.SnapshotProfile
	case name == "":
		name = profiles[0].name
	}
	at := slices.IndexFunc(profiles, func(p profile) bool { return p.name == name })
	if at < 0 {
		return p, fmt.Errorf("--snapshot-profile: %q is not one of %s", name, strings.Join(Profiles(), ", "))
	}
	p = profiles[at]
	p.said = said
	return p, c.override(&p)
}

// alias is the profile that vHive's flags mean; "" if none of them is given.
func (c *Config) alias() (said, name string) {
	switch {
	case c.Snapshots == nil:
		return "", ""
	case !*c.Snapshots:
		return "--snapshots=false", profileNone
	case c.UPF:
		return "--snapshots --upf", profileReap
	}
	return "--snapshots", profileSnapshots
}

// override lets the flags of their own say what a profile does not fix.
func (c *Config) override(p *profile) error {
	off := "off"
	for _, f := range []struct {
		flag, value string
		profile     *string
		bad         bool // with the profile
	}{
		{"snapshot-policy", c.SnapshotPolicy, &p.policy, p.off() != (c.SnapshotPolicy == off)},
		{"snapshot-restore-mode", c.SnapshotRestoreMode, &p.restore,
			p.off() != (c.SnapshotRestoreMode == off) || p.name == profileReap && c.SnapshotRestoreMode != p.restore},
		{"snapshot-pool", c.SnapshotPool, nil, p.off() && c.SnapshotPool != "0"},
	} {
		switch {
		case f.value == "":
		case f.bad && p.name != profiles[0].name:
			return fmt.Errorf("--%s %s contradicts %s: leave one of them out", f.flag, f.value, p.said)
		case f.profile != nil && !p.off():
			*f.profile = f.value
		}
	}
	return nil
}
