package cgroup_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/testenv"
)

// roleEnv makes the test binary play a process in a group.
const roleEnv = "SKEP_CGROUP_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "hog":
		line() // only once it is in the group
		var all [][]byte
		for range 512 {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
		fmt.Println(len(all))
	case "parent":
		line()
		for range 5 { // children that outlive it
			c := exec.Command("/proc/self/exe")
			c.Env = append(os.Environ(), roleEnv+"=child")
			if err := c.Start(); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		fmt.Println("ready")
		fallthrough
	default:
		time.Sleep(time.Hour)
	}
}

func line() { _, _ = bufio.NewReader(os.Stdin).ReadString('\n') }

func newGroup(t *testing.T, l cgroup.Limits) *cgroup.Group {
	t.Helper()
	testenv.Root(t)
	parent := fmt.Sprintf("skep-test-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	g, err := cgroup.Create(parent+"/box", l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p, err := cgroup.Load(parent)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := p.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := p.Delete(ctx); err != nil {
			t.Error(err)
		}
		if p.Exists() {
			t.Errorf("%s still exists", parent)
		}
	})
	return g
}

// play starts a process, puts it into the group and lets it go.
func play(t *testing.T, g *cgroup.Group, role string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	return cmd, bufio.NewReader(out)
}

func TestOOM(t *testing.T) {
	t.Parallel()
	g := newGroup(t, cgroup.Limits{MemoryBytes: 64 << 20, PIDs: 100})
	cmd, _ := play(t, g, "hog")
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the hog ended with %v, want to be killed", err)
	}
	if n, err := g.OOMKills(); n != 1 || err != nil {
		t.Errorf("OOMKills() = %d, %v; want 1", n, err)
	}
}

func TestKillFamily(t *testing.T) {
	t.Parallel()
	g := newGroup(t, cgroup.Limits{MemoryBytes: 512 << 20, CPUMillis: 1500, PIDs: 200})
	cmd, out := play(t, g, "parent")
	if s, err := out.ReadString('\n'); s != "ready\n" {
		t.Fatalf("parent says %q, %v", s, err)
	}
	pids, err := g.Procs()
	if err != nil || len(pids) != 6 || !slices.Contains(pids, cmd.Process.Pid) {
		t.Fatalf("Procs() = %v, %v; want 6 with %d", pids, err, cmd.Process.Pid)
	}
	s, err := g.Stats()
	if err != nil || s.MemoryBytes <= 0 || s.CPUTime <= 0 || s.PIDs < 6 || s.OOMKills != 0 {
		t.Errorf("Stats() = %+v, %v", s, err)
	}
	short, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := g.Delete(short); err == nil {
		t.Error("a group with processes was deleted")
	}
	go func() { _ = cmd.Wait() }() // the children go to init
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for range 2 {
		if err := g.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		if err := g.Delete(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if g.Exists() {
		t.Error("the group still exists")
	}
}

func TestNotItself(t *testing.T) {
	t.Parallel()
	g := newGroup(t, cgroup.Limits{})
	if err := g.Add(0); err == nil {
		t.Error("Add(0) succeeded, which would have moved the test itself")
	}
}

func TestParent(t *testing.T) {
	t.Parallel()
	g := newGroup(t, cgroup.Limits{PIDs: 10})
	parent, err := cgroup.Load(strings.TrimSuffix(g.Path(), "/box"))
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.DeleteIfEmpty(); err != nil || !g.Exists() {
		t.Errorf("DeleteIfEmpty() of a parent with a group: %v, group exists: %v", err, g.Exists())
	}
	if err := g.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := parent.DeleteIfEmpty(); err != nil || parent.Exists() {
		t.Errorf("DeleteIfEmpty() of an empty parent: %v, it exists: %v", err, parent.Exists())
	}
}

func TestAgain(t *testing.T) {
	t.Parallel()
	g := newGroup(t, cgroup.Limits{MemoryBytes: 64 << 20, CPUMillis: 500, PIDs: 10})
	for _, l := range []cgroup.Limits{
		{MemoryBytes: 128 << 20, CPUMillis: 1, PIDs: 20}, {MemoryBytes: 32 << 20, CPUMillis: 4000, PIDs: 5},
	} {
		if _, err := cgroup.Create(g.Path(), l); err != nil {
			t.Errorf("Create again with %+v: %v", l, err)
		}
	}
}
