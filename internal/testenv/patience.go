package testenv

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// PatienceEnv is by how much tests' own deadlines are multiplied: a whole
// number, at least 1. It is for machines that are slow through and through, as
// one that virtualizes by emulation is. Nothing is left out, and what a test
// checks stays as it is.
const PatienceEnv = "SKEP_TEST_PATIENCE"

// Patience is how long a test should wait for what would take d at most on an
// ordinary machine.
func Patience(t testing.TB, d time.Duration) time.Duration {
	t.Helper()
	s := os.Getenv(PatienceEnv)
	if s == "" {
		return d
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a whole number from 1 on", PatienceEnv, s)
	}
	return d * time.Duration(n)
}
