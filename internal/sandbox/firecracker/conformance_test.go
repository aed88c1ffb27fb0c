package firecracker_test

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/sandboxtest"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestConformance(t *testing.T) {
	needFirecracker(t)
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return newDriver(t, firecracker.Config{}) },
		sandboxtest.Options{Timeout: 3 * time.Minute, Parallel: 4})
}

// needFirecracker skips a test where Firecracker is not, or has no KVM: make
// kvm-lab runs it where it has.
func needFirecracker(t testing.TB) {
	t.Helper()
	testenv.Root(t)
	if os.Getenv("SKEP_TEST_ACCEL") != "kvm" {
		t.Skip("Firecracker needs KVM: make kvm-lab")
	}
	for _, p := range []string{"firecracker", "jailer"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%v: skep setup", err)
		}
	}
}

// newDriver makes a driver with an agent built from this tree.
func newDriver(t testing.TB, c firecracker.Config) *firecracker.Driver {
	t.Helper()
	agent, err := os.ReadFile(testenv.Program(t, "github.com/skep-dev/skep/cmd/skep-agent"))
	if err != nil {
		t.Fatal(err)
	}
	c.Agent = agent
	if c.CacheDir == "" {
		c.CacheDir = t.TempDir()
	}
	d, err := firecracker.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
