package firecracker_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
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
	must := os.Getenv("SKEP_TEST_ACCEL") == "kvm" // the lab's promise
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !must && !strings.Contains(string(info), " vmx") && !strings.Contains(string(info), " svm") {
		t.Skip("Firecracker needs KVM, this processor has neither vmx nor svm: make kvm-lab")
	}
	for _, p := range []string{"firecracker", "jailer"} {
		if _, err := exec.LookPath(p); err != nil {
			if must {
				t.Fatal(err)
			}
			t.Skipf("%v: skep setup, and put %s on PATH", err, firecracker.InstallDir)
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

// With everything that can be limited, and without what can be left out.
func TestOptions(t *testing.T) {
	needFirecracker(t)
	template := filepath.Join(t.TempDir(), "template.json")
	if err := os.WriteFile(template, []byte(`{"cpuid_modifiers":[],"msr_modifiers":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	limit := &fcapi.RateLimiter{
		Bandwidth: &fcapi.TokenBucket{Size: 64 << 20, RefillMillis: 100},
		Ops:       &fcapi.TokenBucket{Size: 10000, RefillMillis: 100},
	}
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver {
		return newDriver(t, firecracker.Config{
			CPUTemplate: template, Balloon: true, NoDirtyTracking: true, DiskRate: limit, ReceiveRate: limit, SendRate: limit,
		})
	}, sandboxtest.Options{Timeout: 3 * time.Minute, Parallel: 4})
}

// hugePages is enough for the machines of one test at a time.
const hugePages = 1024

func TestHugePages(t *testing.T) {
	needFirecracker(t)
	const pool = "/proc/sys/vm/nr_hugepages"
	before, err := os.ReadFile(pool)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pool, []byte(strconv.Itoa(hugePages)), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(pool, bytes.TrimSpace(before), 0); err != nil {
			t.Error(err)
		}
	})
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver {
		return newDriver(t, firecracker.Config{HugePages: true})
	}, sandboxtest.Options{Timeout: 3 * time.Minute, Parallel: 2})
}
