package gvisor

import (
	"os"
	"slices"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/runsc/boot/filter"
)

//go:generate go run ./seccompgen

// precompiled is gVisor's table of seccomp programs by the key of their
// configuration. gVisor's own build fills it with generated code, which its Go
// module lacks. Without the program a sandbox builds it anew at every start,
// 15 ms of work.
//
//go:linkname precompiled gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var precompiled map[string]precompiledseccomp.Program

// useSeccompProgram has gVisor find the program that was built ahead.
func useSeccompProgram() {
	if seccompProgram.Name == "" {
		return // none for this processor
	}
	if _, ok := filter.GetPrecompiled(seccompProgram.Name); ok { // which makes the table
		return
	}
	p := seccompProgram
	p.Bytecode32 = slices.Clone(p.Bytecode32)
	p.Bytecode32[seccompPID] = uint32(os.Getpid()) //nolint:gosec // positive
	precompiled[p.Name] = p
}
