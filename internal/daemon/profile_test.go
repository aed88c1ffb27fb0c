package daemon

import (
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
)

// TestProfiles: what `skep up` does, by its flags, or which of them contradict
// each other.
func TestProfiles(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	for _, tt := range []struct {
		flags   string
		edit    func(*Config)
		policy  string // "": no snapshots
		mode    sandbox.RestoreMode
		restore bool
		always  bool
		bad     []string // in the error
	}{
		{flags: "", edit: func(*Config) {}, policy: "after-ready", restore: true},
		{flags: "--snapshot-profile default", edit: func(c *Config) { c.SnapshotProfile = "default" }, policy: "after-ready", restore: true},
		{flags: "--snapshots=false", edit: func(c *Config) { c.Snapshots = &no }},
		{flags: "--snapshot-profile none", edit: func(c *Config) { c.SnapshotProfile = "none" }},
		{flags: "--snapshots", edit: func(c *Config) { c.Snapshots = &yes }, policy: "at-scale-down", mode: sandbox.RestoreMap, restore: true, always: true},
		{flags: "--snapshot-profile snapshots", edit: func(c *Config) { c.SnapshotProfile = "snapshots" }, policy: "at-scale-down", mode: sandbox.RestoreMap, restore: true, always: true},
		{flags: "--snapshots --upf", edit: func(c *Config) { c.Snapshots, c.UPF = &yes, true }, policy: "at-scale-down", mode: sandbox.RestorePager, restore: true, always: true},
		{flags: "--snapshot-profile reap", edit: func(c *Config) { c.SnapshotProfile = "reap" }, policy: "at-scale-down", mode: sandbox.RestorePager, restore: true, always: true},
		{flags: "--snapshot-profile reap --upf", edit: func(c *Config) { c.SnapshotProfile, c.UPF = "reap", true }, policy: "at-scale-down", mode: sandbox.RestorePager, restore: true, always: true},

		// What a profile does not fix can be said otherwise.
		{flags: "--snapshot-policy off", edit: func(c *Config) { c.SnapshotPolicy = "off" }, policy: "off", restore: true},
		{flags: "--snapshot-profile default --snapshot-policy off", edit: func(c *Config) { c.SnapshotProfile, c.SnapshotPolicy = "default", "off" }, policy: "off", restore: true},
		{flags: "--snapshot-restore-mode off", edit: func(c *Config) { c.SnapshotRestoreMode = "off" }, policy: "after-ready"},
		{flags: "--snapshots --snapshot-policy after-n=3", edit: func(c *Config) { c.Snapshots, c.SnapshotPolicy = &yes, "after-n=3" }, policy: "after-n=3", mode: sandbox.RestoreMap, restore: true, always: true},
		{flags: "--snapshots --snapshot-restore-mode auto", edit: func(c *Config) { c.Snapshots, c.SnapshotRestoreMode = &yes, "auto" }, policy: "at-scale-down", restore: true},
		{flags: "--snapshots --upf --snapshot-policy after-ready", edit: func(c *Config) { c.Snapshots, c.UPF, c.SnapshotPolicy = &yes, true, "after-ready" }, policy: "after-ready", mode: sandbox.RestorePager, restore: true, always: true},
		{flags: "--snapshots --upf --snapshot-restore-mode pager", edit: func(c *Config) { c.Snapshots, c.UPF, c.SnapshotRestoreMode = &yes, true, "pager" }, policy: "at-scale-down", mode: sandbox.RestorePager, restore: true, always: true},
		{flags: "--snapshots=false --snapshot-policy off --snapshot-restore-mode off", edit: func(c *Config) { c.Snapshots, c.SnapshotPolicy, c.SnapshotRestoreMode = &no, "off", "off" }},

		{flags: "--snapshot-profile fast", edit: func(c *Config) { c.SnapshotProfile = "fast" }, bad: []string{"--snapshot-profile", "reap"}},
		{flags: "--snapshot-policy sometimes", edit: func(c *Config) { c.SnapshotPolicy = "sometimes" }, bad: []string{"--snapshot-policy", "sometimes"}},
		{flags: "--snapshot-restore-mode fast", edit: func(c *Config) { c.SnapshotRestoreMode = "fast" }, bad: []string{"--snapshot-restore-mode", "fast"}},
		{flags: "--upf", edit: func(c *Config) { c.UPF = true }, bad: []string{"--upf", "--snapshots"}},
		{flags: "--upf --snapshots=false", edit: func(c *Config) { c.UPF, c.Snapshots = true, &no }, bad: []string{"--upf", "--snapshots=false"}},
		{flags: "--upf --snapshot-profile none", edit: func(c *Config) { c.UPF, c.SnapshotProfile = true, "none" }, bad: []string{"--upf", "--snapshots"}},
		{flags: "--snapshots --snapshot-profile none", edit: func(c *Config) { c.Snapshots, c.SnapshotProfile = &yes, "none" }, bad: []string{"--snapshots ", "--snapshot-profile none"}},
		{flags: "--snapshots --snapshot-profile default", edit: func(c *Config) { c.Snapshots, c.SnapshotProfile = &yes, "default" }, bad: []string{"--snapshots ", "--snapshot-profile default"}},
		{flags: "--snapshots=false --snapshot-profile reap", edit: func(c *Config) { c.Snapshots, c.SnapshotProfile = &no, "reap" }, bad: []string{"--snapshots=false", "--snapshot-profile reap"}},
		{flags: "--snapshots --upf --snapshot-restore-mode off", edit: func(c *Config) { c.Snapshots, c.UPF, c.SnapshotRestoreMode = &yes, true, "off" }, bad: []string{"--snapshots --upf", "--snapshot-restore-mode off"}},
		{flags: "--snapshots --upf --snapshot-restore-mode eager", edit: func(c *Config) { c.Snapshots, c.UPF, c.SnapshotRestoreMode = &yes, true, "eager" }, bad: []string{"--snapshots --upf", "--snapshot-restore-mode eager"}},
		{flags: "--snapshots --snapshot-policy off", edit: func(c *Config) { c.Snapshots, c.SnapshotPolicy = &yes, "off" }, bad: []string{"--snapshots", "--snapshot-policy off"}},
		{flags: "--snapshots --snapshot-restore-mode off", edit: func(c *Config) { c.Snapshots, c.SnapshotRestoreMode = &yes, "off" }, bad: []string{"--snapshots", "--snapshot-restore-mode off"}},
		{flags: "--snapshots=false --snapshot-policy after-ready", edit: func(c *Config) { c.Snapshots, c.SnapshotPolicy = &no, "after-ready" }, bad: []string{"--snapshots=false", "--snapshot-policy after-ready"}},
		{flags: "--snapshots=false --snapshot-restore-mode map", edit: func(c *Config) { c.Snapshots, c.SnapshotRestoreMode = &no, "map" }, bad: []string{"--snapshots=false", "--snapshot-restore-mode map"}},
		{flags: "--snapshot-profile none --snapshot-pool 2", edit: func(c *Config) { c.SnapshotProfile, c.SnapshotPool = "none", "2" }, bad: []string{"--snapshot-profile none", "--snapshot-pool 2"}},
	} {
		c := DefaultConfig()
		tt.edit(&c)
		if err := c.Validate(); (err != nil) != (tt.bad != nil) {
			t.Errorf("%s: Validate: %v", tt.flags, err)
		}
		o, err := c.snapshotOptions()
		if tt.bad != nil {
			if err == nil || slices.ContainsFunc(tt.bad, func(w string) bool { return !strings.Contains(err.Error(), w) }) {
				t.Errorf("%s: %v, want %q", tt.flags, err, tt.bad)
			}
			continue
		}
		policy := ""
		if o.Policy != nil {
			policy = o.Policy.String()
		}
		if err != nil || policy != tt.policy || o.Mode != tt.mode || o.Restore != tt.restore || o.Always != tt.always {
			t.Errorf("%s: %+v, %v", tt.flags, o, err)
		}
	}
}

func TestCannotRestore(t *testing.T) {
	t.Parallel()
	yes := true
	c := DefaultConfig()
	c.Snapshots, c.UPF = &yes, true
	reap, err := c.snapshotOptions()
	if err != nil {
		t.Fatal(err)
	}
	c = DefaultConfig()
	plain, err := c.snapshotOptions()
	if err != nil {
		t.Fatal(err)
	}
	qemu := sandbox.Capabilities{Snapshot: true, RestoreModes: []sandbox.RestoreMode{sandbox.RestoreMap, sandbox.RestorePager}}
	gvisor := sandbox.Capabilities{Snapshot: true, RestoreModes: []sandbox.RestoreMode{sandbox.RestoreEager}}
	if got := cannotRestore(reap, "qemu", qemu) + cannotRestore(plain, "runc", sandbox.Capabilities{}); got != "" {
		t.Errorf("it can: %q", got)
	}
	if got := cannotRestore(reap, "gvisor", gvisor); !strings.Contains(got, "gvisor has no pager") {
		t.Errorf("gvisor: %q", got)
	}
	if got := cannotRestore(reap, "runc", sandbox.Capabilities{}); !strings.Contains(got, "no snapshots") {
		t.Errorf("runc: %q", got)
	}
}
