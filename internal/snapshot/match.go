package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Environment is what the place where a snapshot shall be restored offers. Its
// CPU features may be more than a snapshot needs; all else must be equal.
type Environment struct {
	Requirements
}

// MismatchError says in which field a snapshot and an environment differ.
type MismatchError struct {
	Field string // as in the manifest's JSON, such as "driver.version"
	Want  string // what the snapshot was made with
	Have  string // what is here
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("snapshot was made with %s %q, here is %q", e.Field, e.Want, e.Have)
}

// Match says whether the snapshot can be restored in env: nil, or a
// *MismatchError for every field that differs (joined; use errors.As, or
// Mismatches for all). The answer to a mismatch is a cold boot.
func (m *Manifest) Match(env Environment) error {
	var errs []error
	check := func(field, want, have string) {
		if want != have {
			errs = append(errs, &MismatchError{field, want, have})
		}
	}
	check("driver.name", m.Driver.Name, env.Driver.Name)
	check("driver.version", m.Driver.Version, env.Driver.Version)
	check("kernel", m.Kernel, env.Kernel)
	check("agent", m.Agent, env.Agent)
	check("rootImage", m.RootImage, env.RootImage)
	check("cpu.arch", m.CPU.Arch, env.CPU.Arch)
	check("cpu.model", m.CPU.Model, env.CPU.Model)
	var lacking []string
	for _, f := range m.CPU.Features {
		if !slices.Contains(env.CPU.Features, f) {
			lacking = append(lacking, f)
		}
	}
	if len(lacking) > 0 {
		errs = append(errs, &MismatchError{"cpu.features", strings.Join(lacking, " "), "none of these"})
	}
	check("memoryBytes", fmt.Sprint(m.MemoryBytes), fmt.Sprint(env.MemoryBytes))
	check("vcpus", fmt.Sprint(m.VCPUs), fmt.Sprint(env.VCPUs))
	return errors.Join(errs...)
}

// Mismatches lists the fields in which Match found differences.
func Mismatches(err error) []*MismatchError {
	if m, ok := err.(*MismatchError); ok { //nolint:errorlint // this walks the tree itself
		return []*MismatchError{m}
	}
	var all []*MismatchError
	//nolint:errorlint // likewise
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, Mismatches(e)...)
		}
	} else if inner := errors.Unwrap(err); inner != nil {
		return Mismatches(inner)
	}
	return all
}
