// Package snapshots keeps the snapshots of a node's revisions: it decides when
// one is made, finds the one to restore, keeps it as plain files for drivers
// to map, and brings it into a snapshot store and back.
//
// The files of a snapshot on this machine are a copy, in a folder that the
// journal has a record of; the store has the truth. A copy that is not as it
// was written is never used.
package snapshots

import (
	"fmt"
	"slices"
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
	// Must: it is an error if the driver does not have the Mode, or cannot make
	// the snapshots that Policy asks for. Otherwise it does what it can.
	Must bool
	// WorkingSet says what becomes of the working set that was there when it is
	// recorded anew; "" means LastSet.
	WorkingSet WorkingSets
	// Pool says how many sandboxes are kept prepared; nil means none.
	Pool Pool
	// Before is told to the function before a snapshot is made, After when it
	// goes on or was restored.
	Before, After Hook
}

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

// Check says whether a driver with these capabilities can do what is asked
// for, and returns what is to be done there.
func (o Options) Check(driver string, can sandbox.Capabilities) (Options, error) {
	if !can.Snapshot {
		if o.Must && (o.Mode != "" || o.Policy != nil && o.Policy.String() != "off") {
			return o, fmt.Errorf("the sandbox driver %s can make no snapshots: choose another with skep.dev/sandbox, or set skep.dev/snapshot-policy: off and no restore mode", driver)
		}
		return Options{}, nil
	}
	if o.Mode != "" && !slices.Contains(can.RestoreModes, o.Mode) {
		if o.Must {
			return o, fmt.Errorf("the sandbox driver %s cannot restore with %q; it can with %v", driver, o.Mode, can.RestoreModes)
		}
		o.Mode = ""
	}
	return o, nil
}
