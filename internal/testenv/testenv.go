// Package testenv says what a test needs of the machine. Where a need is not
// met the test is skipped, except in CI (CI=true), where it fails: CI proves
// everything or nothing.
package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// Root needs the test to run as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "this test needs root")
	}
}

// Tool needs a program on PATH and returns its path; pkg is the Debian
// package that brings it.
func Tool(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, "this test needs "+name+": apt-get install "+pkg)
	}
	return path
}

// File needs a file to exist; hint says how to get it.
func File(t testing.TB, path, hint string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		missing(t, "this test needs "+path+": "+hint)
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}
