// Package snapshots keeps the snapshots of a node's revisions: it decides when
// one is made, finds the one to restore, keeps it as plain files for drivers
// to map, and brings it into a snapshot store and back.
//
// The files of a snapshot on this machine are a copy, in a folder that the
// journal has a record of; the store has the truth. A copy that is not as it
// was written is never used.
package snapshots

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
)

// Options say how snapshots of one revision are made and used. The zero value
// means not at all.
type Options struct {
	// Policy says when a snapshot is made; nil means never.
	Policy Policy
	// Restore: instances are started from snapshots.
	Restore bool
	// Mode is how memory comes back; "" leaves it to the driver.
	Mode sandbox.RestoreMode
	// Always: they are also where booting has proved to be faster.
	Always bool
	// Diffs is how many differences may lie on a whole snapshot: one that is
	// restored and saved again holds only what changed. 0: they are all whole.
	Diffs int
	// WorkingSet says what becomes of the working set that was there when it is
	// recorded anew; "" means LastSet.
	WorkingSet WorkingSets
	// Pool says how many sandboxes are kept prepared; nil means none.
	Pool Pool
	// Before is told to the function before a snapshot is made, After when it
	// goes on or was restored.
	Before, After Hook
	// Asked is what of this the service itself asks for.
	Asked Asked
}

// Asked names, of each part of Options that a service has asked for, the
// annotation; "" of what it has not, or what is nothing, as a pool of 0. It is
// an error if what was asked for cannot be done; of the rest, a driver does what
// it can.
type Asked struct{ Policy, Restore, Pool, Diffs, WorkingSet, Hook string }

// MaxDiffs bounds Options.Diffs: each is to be opened at a start.
const MaxDiffs = 8

// Hook is how a function is told something. The zero value is not at all.
type Hook struct {
	Path    string         // it is sent a POST of this path, and must answer 2xx
	Signal  syscall.Signal // its process is sent the signal, after that
	Timeout time.Duration  // for the answer; 0 means DefaultHookTimeout
}

// DefaultHookTimeout is how long a function may take to answer a Hook.
const DefaultHookTimeout = 10 * time.Second

// MaxHookTimeout bounds what may be asked for.
const MaxHookTimeout = 5 * time.Minute

// Modes are the restore modes that can be asked for.
var Modes = []sandbox.RestoreMode{
	sandbox.RestoreMap, sandbox.RestoreHint, sandbox.RestoreEager, sandbox.RestorePager, sandbox.RestoreBackground,
}

// ParseDiffs reads Options.Diffs.
func ParseDiffs(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > MaxDiffs {
		return 0, fmt.Errorf("%q is not a number from 0 to %d", s, MaxDiffs)
	}
	return n, nil
}

// SetRestore sets Restore, Always and Mode: "auto" restores unless booting has
// proved to be faster, "always" restores, both as the driver likes it; "off"
// boots; a restore mode restores, that way.
func (o *Options) SetRestore(s string) error {
	switch {
	case s == "auto":
		o.Restore, o.Always, o.Mode = true, false, ""
	case s == "always":
		o.Restore, o.Always, o.Mode = true, true, ""
	case s == "off":
		o.Restore, o.Always, o.Mode = false, false, ""
	case slices.Contains(Modes, sandbox.RestoreMode(s)):
		o.Restore, o.Always, o.Mode = true, true, sandbox.RestoreMode(s)
	default:
		return fmt.Errorf("%q is not one of %s", s, strings.Join(RestoreNames(), ", "))
	}
	return nil
}

// RestoreNames lists what SetRestore reads.
func RestoreNames() []string {
	names := []string{"auto", "always", "off"}
	for _, m := range Modes {
		names = append(names, string(m))
	}
	return names
}

// WorkingSets says how recordings of working sets become one.
type WorkingSets string

// The ways.
const (
	LastSet       WorkingSets = "last"         // the latest counts
	UniteSets     WorkingSets = "union"        // all that any needed
	IntersectSets WorkingSets = "intersection" // what all needed
)

// ParseWorkingSets reads one of them.
func ParseWorkingSets(s string) (WorkingSets, error) {
	switch w := WorkingSets(s); w {
	case LastSet, UniteSets, IntersectSets:
		return w, nil
	}
	return "", fmt.Errorf("%q is none of %s, %s, %s", s, LastSet, UniteSets, IntersectSets)
}

// ParseSignal reads a signal's name, such as USR2 or SIGUSR2. Only such that a
// function can handle make sense.
func ParseSignal(s string) (syscall.Signal, error) {
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	sig := unix.SignalNum(name)
	if sig == 0 || sig == unix.SIGKILL || sig == unix.SIGSTOP {
		return 0, fmt.Errorf("%q is not a signal that a function can handle, such as SIGUSR2", s)
	}
	return sig, nil
}

// ParsePath checks the path of a Hook.
func ParsePath(s string) (string, error) {
	if !strings.HasPrefix(s, "/") || len(s) > 1024 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", fmt.Errorf("%q is not a path such as /hooks/before-snapshot", s)
	}
	return s, nil
}

// Check says whether what is asked for can be done by a driver with these
// capabilities, on a node where snapshots are on or off, and returns what is to
// be done there. The error names the annotation, and what to change.
func (o Options) Check(driver string, can sandbox.Capabilities, on bool) (Options, error) {
	if !on || !can.Snapshot {
		a := o.Asked
		name := cmp.Or(a.Policy, a.Restore, a.Pool, a.Diffs, a.WorkingSet, a.Hook)
		switch {
		case name == "":
			return Options{}, nil
		case !on:
			return o, fmt.Errorf("annotation %s: there are no snapshots on this node: start `skep up` without --snapshots=false or --snapshot-profile none, or remove the annotation", name)
		}
		return o, fmt.Errorf("annotation %s: the sandbox driver %s can make no snapshots: choose another with skep.dev/sandbox, or remove the annotation", name, driver)
	}
	if o.Mode != "" && !slices.Contains(can.RestoreModes, o.Mode) {
		if o.Asked.Restore != "" {
			return o, fmt.Errorf("annotation %s: the sandbox driver %s cannot restore with %q: choose one of auto, always, off, %s", o.Asked.Restore, driver, o.Mode, join(can.RestoreModes))
		}
		o.Mode = ""
	}
	switch {
	case o.Asked.Pool != "" && !o.Restore:
		return o, fmt.Errorf("annotation %s: instances are not restored, which a pool is for: set skep.dev/snapshot-restore: auto, or remove the annotation", o.Asked.Pool)
	case o.Asked.Diffs != "" && !can.LayeredSnapshot:
		return o, fmt.Errorf("annotation %s: the sandbox driver %s saves no differences: choose another with skep.dev/sandbox, or remove the annotation", o.Asked.Diffs, driver)
	case o.Asked.WorkingSet != "" && !can.OnDemandMemory:
		return o, fmt.Errorf("annotation %s: the sandbox driver %s records no working sets: choose another with skep.dev/sandbox, or remove the annotation", o.Asked.WorkingSet, driver)
	case o.Asked.WorkingSet != "" && (!o.Restore || !Records(can, o.Mode)):
		return o, fmt.Errorf("annotation %s: instances are restored in a way that needs no working set, or not at all: set skep.dev/snapshot-restore to auto, always, %s or %s, or remove the annotation",
			o.Asked.WorkingSet, sandbox.RestoreHint, sandbox.RestorePager)
	}
	return o, nil
}

// Records tells whether a working set is of use: to those modes that load it
// ahead, with a driver that can record one.
func Records(can sandbox.Capabilities, mode sandbox.RestoreMode) bool {
	switch mode {
	case "", sandbox.RestoreHint, sandbox.RestorePager:
		return can.OnDemandMemory
	}
	return false
}

func join(modes []sandbox.RestoreMode) string {
	var names []string
	for _, m := range modes {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}
