//go:build !amd64

package gvisor

import "gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"

// seccompProgram is built by gVisor itself: run go generate on such a machine
// to have one.
var seccompProgram precompiledseccomp.Program

const seccompPID = 0
