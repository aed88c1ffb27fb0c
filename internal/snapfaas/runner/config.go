// Package runner is firerunner: a child process that owns one micro-VM, and its
// parent's handle on it. A child that dies takes nobody with it.
//
// Parent and child speak over the child's standard input and output, in JSON
// frames of package frame: the configuration; then the child says "ready", or
// "failed" and ends; then requests, each with an answer. When its input ends
// the child stops the machine and ends: so no machine outlives its parent.
package runner

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
	"github.com/skep-dev/skep/internal/snapfaas/snapdir"
)

// Config is what a child needs to know. Paths are absolute.
type Config struct {
	State sandbox.State `json:"state"`
	Link  sandbox.Link  `json:"link"`

	Hostname  string `json:"hostname"`
	Rootfs    string `json:"rootfs"`
	App       string `json:"app"`             // disk with the app, or the placeholder
	NoApp     bool   `json:"noApp,omitempty"` // App is the placeholder
	MemoryMiB int64  `json:"memoryMiB"`
	VCPUs     int64  `json:"vcpus"`

	Load Load `json:"load"`
	Dump Dump `json:"dump"`

	// Boot bounds starting the machine until it takes requests, Request one
	// request. Zero means the default, less is wrong.
	Boot    time.Duration `json:"boot"`
	Request time.Duration `json:"request"`
}

// Load says what to restore, if anything.
type Load struct {
	// Dirs are the folders of a snapshot, the base first; none means to boot.
	Dirs []string `json:"dirs,omitempty"`
	// CopyBase loads all memory before the machine runs.
	CopyBase bool `json:"copyBase,omitempty"`
	// CopyDiff loads the diffs' pages ahead, and the base's when they are
	// touched. That is also done where neither it nor LazyDiff is set.
	CopyDiff bool `json:"copyDiff,omitempty"`
	// LazyDiff loads the diffs' pages, too, when they are touched.
	LazyDiff bool `json:"lazyDiff,omitempty"`
	// WorkingSet loads the recorded pages ahead.
	WorkingSet bool `json:"workingSet,omitempty"`
}

// Dump says what to write, if anything.
type Dump struct {
	// Dir gets a snapshot: a diff if one was loaded.
	Dir string `json:"dir,omitempty"`
	// Point is when; "" means: at Language after a boot, at App after a
	// restore. What has an app in it from the start is at App.
	Point guest.Point `json:"point,omitempty"`
	// Exit ends the machine after the snapshot.
	Exit bool `json:"exit,omitempty"`
	// WorkingSet is the newest folder loaded: what the first request touches is
	// written there.
	WorkingSet string `json:"workingSet,omitempty"`
}

// Defaults of timeouts.
const (
	DefaultBoot    = 2 * time.Minute
	DefaultRequest = time.Minute
	// stopTimeout bounds the end of a machine.
	stopTimeout = 30 * time.Second
)

// Limits of a machine.
const (
	minMemoryMiB, maxMemoryMiB = 32, 1 << 20
	maxVCPUs                   = 32
)

// Validate fills in defaults, and says what is wrong in the words of the
// command line.
func (c *Config) Validate() error {
	var errs []error
	wrong := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	wrong(!filepath.IsAbs(c.Rootfs), "--rootfs: %q is not a path", c.Rootfs)
	wrong(!filepath.IsAbs(c.App), "--appfs: %q is not a path", c.App)
	wrong(c.MemoryMiB < minMemoryMiB || c.MemoryMiB > maxMemoryMiB, "--mem_size: %d MB is not between %d and %d", c.MemoryMiB, minMemoryMiB, maxMemoryMiB)
	wrong(c.VCPUs < 1 || c.VCPUs > maxVCPUs, "--vcpu_count: %d is not between 1 and %d", c.VCPUs, maxVCPUs)
	wrong(len(c.Load.Dirs) > snapdir.MaxLayers, "--load_dir: more than %d folders", snapdir.MaxLayers)
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"--copy_base", c.Load.CopyBase}, {"--copy_diff", c.Load.CopyDiff},
		{"--load_ws", c.Load.WorkingSet}, {"--dump_ws", c.Dump.WorkingSet != ""},
	} {
		wrong(f.set && len(c.Load.Dirs) == 0, "%s: it needs --load_dir", f.name)
	}
	wrong(c.Load.CopyDiff && len(c.Load.Dirs) == 1, "--copy_diff: it needs a diff: --load_dir BASE,DIFF or --diff_dirs DIFF")
	wrong(c.Load.LazyDiff && len(c.Load.Dirs) == 0, "--copy_diff=false: it needs --load_dir")
	wrong(c.Load.LazyDiff && len(c.Load.Dirs) == 1 && !c.Load.WorkingSet, "--copy_diff=false: it needs a diff (--load_dir BASE,DIFF or --diff_dirs DIFF), or --load_ws, with which it has the rest of the base read page by page")
	wrong(c.Load.CopyBase && c.Load.LazyDiff, "--copy_diff=false: not together with --copy_base, which copies all memory")
	wrong(c.Load.WorkingSet && c.Dump.WorkingSet != "", "--load_ws: not together with --dump_ws: pages that are loaded ahead are not seen to be touched")
	wrong(c.Load.CopyBase && c.Dump.WorkingSet != "", "--copy_base: not together with --dump_ws: pages that are loaded ahead are not seen to be touched")
	wrong(c.Dump.Exit && c.Dump.Dir == "", "--force_exit: it needs --dump_dir")
	wrong(c.Dump.Exit && c.Dump.WorkingSet != "", "--dump_ws: not together with --force_exit: it records what the first request touches, and there is none; make the snapshot first, then load it with --dump_ws")
	wrong(c.Dump.Point != "" && c.Dump.Point != guest.Language && c.Dump.Point != guest.App,
		"--snapshot_point: %.40q is neither %s nor %s", c.Dump.Point, guest.Language, guest.App)
	wrong(c.Dump.Point != "" && c.Dump.Dir == "", "--snapshot_point: it says when --dump_dir is done, and needs that")
	wrong(c.Boot < 0, "--boot_timeout: %v is no time", c.Boot)
	wrong(c.Request < 0, "--request_timeout: %v is no time", c.Request)
	c.Boot, c.Request = cmp.Or(c.Boot, DefaultBoot), cmp.Or(c.Request, DefaultRequest)
	return errors.Join(errs...)
}

// point is when Dump.Dir is done.
func (c *Config) point() guest.Point {
	if len(c.Load.Dirs) > 0 {
		return cmp.Or(c.Dump.Point, guest.App)
	}
	return cmp.Or(c.Dump.Point, guest.Language)
}

// Phase is a step of starting a machine.
type Phase struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"`
}

// Ready is what a child says of a machine that takes requests, or, with
// Dump.Exit, that has been saved.
type Ready struct {
	Point  guest.Point `json:"point"`
	Phases []Phase     `json:"phases"`
	// Notes are for people: what was done otherwise than asked.
	Notes []string `json:"notes,omitempty"`
}

// Kinds of messages.
const (
	kindReady    = "ready"
	kindFailed   = "failed" // the child ends
	kindRequest  = "request"
	kindResponse = "response"
	kindAppError = "app-error" // the machine goes on
)

type message struct {
	Kind    string          `json:"kind"`
	Config  *Config         `json:"config,omitempty"`
	Ready   *Ready          `json:"ready,omitempty"`
	Error   string          `json:"error,omitempty"`
	Payload json.RawMessage `json:"payload,omitempty"`
	// Took is how long the guest took for a request.
	Took time.Duration `json:"took,omitempty"`
	// Recorded says that what this request has touched was written.
	Recorded bool `json:"recorded,omitempty"`
}
