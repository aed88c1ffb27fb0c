package testenv

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"testing"
)

// ProgramsEnv names a folder of programs that Program takes ready-made, each
// under the last element of its package's path: for machines without Go.
const ProgramsEnv = "SKEP_TEST_PROGRAMS"

// Program builds a static program from the import path of its package, and
// returns where it is. It stays until the test's end.
func Program(t testing.TB, pkg string) string {
	t.Helper()
	if dir := os.Getenv(ProgramsEnv); dir != "" {
		return filepath.Join(dir, path.Base(pkg))
	}
	tool := Tool(t, "go", "golang")
	out := filepath.Join(t.TempDir(), path.Base(pkg))
	cmd := exec.CommandContext(t.Context(), tool, "build", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	return out
}
