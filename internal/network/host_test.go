package network_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

const ownHostEnv = "SKEP_TEST_NETWORK_OWN_HOST"

// ownHost runs the calling test again in a process whose host network is a
// new namespace, so that it can have any routes, tables and sysctls. In that
// process it returns true.
func ownHost(t *testing.T) bool {
	t.Helper()
	testenv.Root(t)
	if os.Getenv(ownHostEnv) != "" {
		if err := setLoopbackUp(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), ownHostEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// TestForwarding follows the host's ip_forward.
func TestForwarding(t *testing.T) {
	t.Parallel()
	if !ownHost(t) {
		return
	}
	const sysctl = "/proc/sys/net/ipv4/ip_forward"
	set := func(value string) {
		t.Helper()
		if err := os.WriteFile(sysctl, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when, value string) {
		t.Helper()
		got, err := os.ReadFile(sysctl)
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(got)) != value {
			t.Errorf("%s: ip_forward is %s, want %s", when, got, value)
		}
	}
	start := func(egress bool) *network.Manager {
		t.Helper()
		m := manager(t, testConfig(t))
		acquire(t, m, network.Options{Kind: sandbox.LinkTAP, Egress: egress})
		return m
	}
	stop := func(m *network.Manager) {
		t.Helper()
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	set("0")
	m := start(false)
	want("without egress", "0")
	stop(m)

	a := start(true)
	want("with egress", "1")
	b := start(true)
	stop(a)
	want("the first of two closed", "1")
	stop(b)
	want("the last closed", "0")

	set("1")
	stop(start(true))
	want("on from the start", "1")

	set("0")
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Name: "foreign", Family: nftables.TableFamilyIPv4})
	c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	stop(start(true))
	want("somebody else forwards", "1")
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) != 1 || tables[0].Name != "foreign" {
		t.Errorf("tables at the end: %v", tables)
	}
}

// TestReleaseInhabited releases a lease in which a process still lives.
func TestReleaseInhabited(t *testing.T) {
	t.Parallel()
	sleep := testenv.Tool(t, "sleep", "coreutils")
	cfg := testConfig(t)
	m := manager(t, cfg)
	for _, kind := range kinds {
		l := acquire(t, m, network.Options{Kind: kind, Egress: true})
		cmd := exec.Command(sleep, "600")
		if err := netns.Do(l.Link().NetNS, cmd.Start); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if links := hostLinks(t, cfg); len(links) > 0 {
			t.Errorf("it still has a way out: %v", links)
		}
	}
}
