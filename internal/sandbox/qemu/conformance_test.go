package qemu_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/qemu"
	"github.com/skep-dev/skep/internal/sandbox/sandboxtest"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestConformance(t *testing.T) {
	testenv.Root(t)
	testenv.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return newDriver(t, qemu.AccelAuto) },
		sandboxtest.Options{Timeout: 3 * time.Minute})
}

var buildAgent = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "skep-agent-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "skep-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/skep-dev/skep/cmd/skep-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// newDriver makes a driver with an agent built from this tree, whatever is
// embedded.
func newDriver(t testing.TB, a qemu.Accel) *qemu.Driver {
	t.Helper()
	agent, err := buildAgent()
	if err != nil {
		t.Fatalf("build the agent: %v", err)
	}
	d, err := qemu.New(qemu.Config{CacheDir: t.TempDir(), Accel: a, Agent: agent})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
