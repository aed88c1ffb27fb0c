// Package lab is what the machine of the KVM lab and the program that boots it
// say to each other.
package lab

import (
	"fmt"
	"strconv"
	"strings"
)

// Paths inside of the machine.
const (
	JobsFile = "/lab/jobs.json"
	BinDir   = "/lab/bin"
	Kernel   = "/boot" // the guest's kernel is where the distribution puts it
)

// TickSeconds is the machine's own time between two marks that it lives.
const TickSeconds = 5

// NonceParam is the kernel parameter with the word that marks the machine's own
// lines on the console, so that no test's output can pass for one.
const NonceParam = "kvmlab.nonce"

// JobParam is the kernel parameter with the name of the job to run.
const JobParam = "kvmlab.job"

// Job is a program to run in the machine.
type Job struct {
	Name    string   `json:"name"`
	Args    []string `json:"args"`
	Env     []string `json:"env"`
	Modules []string `json:"modules,omitempty"`
	// Tests says that it is a test program, of which tests must pass, and Want
	// which: that none fails is not enough, as they may have been skipped.
	Tests bool     `json:"tests,omitempty"`
	Want  []string `json:"want,omitempty"`
}

// Mark is one line of the machine's own.
type Mark struct {
	Kind string // MarkUp, MarkExit or MarkEnd
	Job  string // of MarkExit
	Code int    // of MarkExit
	Note string // of MarkExit: what it says of its tests
}

// Kinds of marks.
const (
	MarkUp   = "up"   // the machine is ready to run jobs
	MarkExit = "exit" // a job has ended
	MarkEnd  = "end"  // all is done
	MarkTick = "tick" // the machine lives; every TickSeconds
)

// Line is the mark as it goes over the console.
func (m Mark) Line(nonce string) string {
	return fmt.Sprintf("kvmlab-%s %s %s %d %s", nonce, m.Kind, strconv.Quote(m.Job), m.Code, strconv.Quote(m.Note))
}

// ParseMark reads a line of the console. Others than marks give ok false.
func ParseMark(line, nonce string) (m Mark, ok bool) {
	// The kernel may have begun a line of its own before.
	_, rest, found := strings.Cut(line, "kvmlab-"+nonce+" ")
	if !found {
		return m, false
	}
	_, err := fmt.Sscanf(strings.TrimSpace(rest), "%s %q %d %q", &m.Kind, &m.Job, &m.Code, &m.Note)
	return m, err == nil
}
