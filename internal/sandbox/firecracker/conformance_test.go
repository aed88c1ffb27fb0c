package firecracker_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/firecracker"
	"github.com/skep-dev/skep/internal/sandbox/firecracker/fcapi"
	"github.com/skep-dev/skep/internal/sandbox/sandboxtest"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestConformance(t *testing.T) {
	needFirecracker(t)
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return newDriver(t, firecracker.Config{}) },
		sandboxtest.Options{Parallel: 4, Inspect: confined})
}

// confined checks that Firecracker's own seccomp filters hold every thread of
// a machine that runs, and what they refuse.
func confined(t *testing.T, s sandbox.State) {
	t.Helper()
	g, err := cgroup.Load(s.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := g.Procs()
	pids = slices.DeleteFunc(pids, func(pid int) bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return exe == "" // a thread of KVM's own, which some kernels have there
	})
	if err != nil || len(pids) != 1 {
		t.Fatalf("processes of the machine: %v, %v; want the monitor alone", pids, err)
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/status", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		of := map[string]string{}
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(line, ":")
			of[k] = strings.TrimSpace(v)
		}
		names = append(names, of["Name"])
		// 2 is SECCOMP_MODE_FILTER.
		if of["Seccomp"] != "2" || of["NoNewPrivs"] != "1" || strings.Trim(of["CapEff"], "0") != "" {
			t.Errorf("thread %s: Seccomp %s, NoNewPrivs %s, CapEff %s; want 2, 1, none", of["Name"], of["Seccomp"], of["NoNewPrivs"], of["CapEff"])
		}
	}
	firecracker.CheckFilters(t, pids[0])
	for _, want := range []string{"firecracker", "fc_api", "fc_vcpu 0"} {
		if !slices.Contains(names, want) {
			t.Errorf("threads %q: no %q", names, want)
		}
	}
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
		if _, err := firecracker.FindProgram(p); err != nil {
			if must {
				t.Fatal(err)
			}
			t.Skip(err)
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
	}, sandboxtest.Options{Parallel: 4})
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
	}, sandboxtest.Options{Parallel: 2})
}
