package qemu_test

import (
	"os"
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
	accel := qemu.Accel(os.Getenv("SKEP_TEST_ACCEL")) // the KVM lab accepts no other
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return newDriver(t, accel) },
		sandboxtest.Options{Timeout: 3 * time.Minute})
}

// newDriver makes a driver with an agent built from this tree, whatever is
// embedded.
func newDriver(t testing.TB, a qemu.Accel) *qemu.Driver {
	t.Helper()
	agent, err := os.ReadFile(testenv.Program(t, "github.com/skep-dev/skep/cmd/skep-agent"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := qemu.New(qemu.Config{CacheDir: t.TempDir(), Accel: a, Agent: agent})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
