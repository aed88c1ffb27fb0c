package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeV2 makes a directory that looks like a v2 hierarchy with one group.
func fakeV2(t *testing.T, path string) (*hierarchies, string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		put(t, d, map[string]string{
			"cgroup.procs": "", "cgroup.subtree_control": "cpu", "memory.max": "max", "memory.swap.max": "max",
			"cpu.max": "max 100000", "pids.max": "max",
		})
		if d == root {
			break
		}
	}
	return &hierarchies{unified: root, mounts: []string{root}}, dir
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestV2Create(t *testing.T) {
	h, dir := fakeV2(t, "skep-1a2b3c4d/box")
	if _, err := create(h, "skep-1a2b3c4d/box", Limits{MemoryBytes: 64 << 20, CPUMillis: 250, PIDs: 32}); err != nil {
		t.Fatal(err)
	}
	// Real files take a value whole; a plain one keeps the tail of a longer
	// one, so compare beginnings.
	for name, want := range map[string]string{
		"memory.max": "67108864", "memory.swap.max": "0", "cpu.max": "25000 100000", "pids.max": "32",
	} {
		if got := content(t, filepath.Join(dir, name)); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, d := range []string{h.unified, filepath.Dir(dir)} {
		if got := content(t, filepath.Join(d, "cgroup.subtree_control")); got != "+pids" && !strings.HasPrefix(got, "+pids") {
			t.Errorf("last controller turned on in %s is %q, want +pids", d, got)
		}
	}
	if got := content(t, filepath.Join(dir, "cgroup.subtree_control")); got != "cpu" {
		t.Errorf("the group itself delegates %q; processes could not live in it", got)
	}
}

func TestV2NoSwapAccounting(t *testing.T) {
	h, dir := fakeV2(t, "a")
	if err := os.Remove(filepath.Join(dir, "memory.swap.max")); err != nil {
		t.Fatal(err)
	}
	if _, err := create(h, "a", Limits{MemoryBytes: 1 << 20}); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, "memory.max")); err != nil {
		t.Fatal(err)
	}
	if _, err := create(h, "a", Limits{MemoryBytes: 1 << 20}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without memory.max: %v, want fs.ErrNotExist", err)
	}
}

func TestV2Stats(t *testing.T) {
	h, dir := fakeV2(t, "a/b")
	put(t, dir, map[string]string{
		"memory.current": "10000000\n", "memory.stat": "anon 1\ninactive_file 4000000\nactive_file 3\n",
		"cpu.stat": "usage_usec 1500000\nuser_usec 1\n", "pids.current": "7\n",
		"memory.events": "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n",
	})
	g, err := load(h, "a/b")
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.Stats()
	want := Stats{MemoryBytes: 6000000, CPUTime: 1500 * time.Millisecond, PIDs: 7, OOMKills: 2}
	if err != nil || got != want {
		t.Errorf("Stats() = %+v, %v; want %+v", got, err, want)
	}
	if n, err := g.OOMKills(); n != 2 || err != nil {
		t.Errorf("OOMKills() = %d, %v; want 2", n, err)
	}
	put(t, dir, map[string]string{"memory.events": "oom_kill many\n"})
	if _, err := g.OOMKills(); err == nil || !strings.Contains(err.Error(), "memory.events") {
		t.Errorf("OOMKills() of garbage: %v, want an error that names the file", err)
	}
}

func TestV2ProcsAndKill(t *testing.T) {
	h, dir := fakeV2(t, "a/b")
	child := filepath.Join(dir, "child")
	if err := os.Mkdir(child, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, dir, map[string]string{"cgroup.procs": "30\n7\n0\n", "cgroup.kill": ""})
	put(t, child, map[string]string{"cgroup.procs": "12\n"})
	g, err := load(h, "a/b")
	if err != nil {
		t.Fatal(err)
	}
	pids, err := g.Procs()
	if err != nil || len(pids) != 3 || pids[0] != 7 || pids[1] != 12 || pids[2] != 30 {
		t.Errorf("Procs() = %v, %v; want 7, 12, 30", pids, err)
	}
	// A fake cannot kill: it must be asked, and time must be kept.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := g.Kill(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Kill() = %v, want context.DeadlineExceeded", err)
	}
	if got := content(t, filepath.Join(dir, "cgroup.kill")); got != "1" {
		t.Errorf("cgroup.kill is %q, want 1", got)
	}
}

func TestParseMountinfo(t *testing.T) {
	const (
		v2     = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		memory = "30 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
		cpu    = "31 22 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
		named  = "32 22 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
		hybrid = "33 22 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		blank  = "34 22 0:31 / /mnt/c\\040g rw - cgroup2 cgroup2 rw\n"
	)
	for _, test := range []struct {
		name, text, unified, cpu string
		mounts                   int
		fails                    bool
	}{
		{name: "v2", text: v2, unified: "/sys/fs/cgroup", mounts: 1},
		{name: "v1", text: memory + cpu + named, cpu: "/sys/fs/cgroup/cpu,cpuacct", mounts: 3},
		{name: "hybrid", text: hybrid + memory + cpu, cpu: "/sys/fs/cgroup/cpu,cpuacct", mounts: 3},
		{name: "twice", text: v2 + v2, unified: "/sys/fs/cgroup", mounts: 1},
		{name: "blank", text: blank, unified: "/mnt/c g", mounts: 1},
		{name: "none", text: "22 1 0:20 / / rw - ext4 /dev/sda rw\n", fails: true},
		{name: "no memory", text: cpu, fails: true},
		{name: "garbage", text: "x - cgroup2\n - \n\n", fails: true},
	} {
		h, err := parseMountinfo(test.text)
		if (err != nil) != test.fails {
			t.Errorf("%s: %v", test.name, err)
		}
		if err == nil && (h.unified != test.unified || h.v1["cpu"] != test.cpu || len(h.mounts) != test.mounts) {
			t.Errorf("%s: %+v", test.name, h)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n")
	f.Add("low 0\noom_kill 2\n")
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := parseMountinfo(s); err == nil && len(h.mounts) == 0 {
			t.Error("hierarchies without mounts")
		}
		_, _, _ = parseKeyValue(s, "oom_kill")
		_ = (&Group{path: "a/b"}).Contains(s)
	})
}

func TestPaths(t *testing.T) {
	h, _ := fakeV2(t, "a")
	for _, path := range []string{"", ".", "..", "../a", "/a", "a/../b", "a/", "a//b"} {
		if _, err := load(h, path); err == nil {
			t.Errorf("load(%q) succeeded", path)
		}
	}
	if _, err := create(h, "a", Limits{PIDs: -1}); err == nil {
		t.Error("a negative limit was accepted")
	}
}

func TestContains(t *testing.T) {
	g := &Group{path: "skep-1/box"}
	for text, want := range map[string]bool{
		"0::/skep-1/box\n":                    true,
		"4:memory:/x\n3:pids:/skep-1/box/in":  true,
		"4:memory:/skep-1/box2\n0::/\n":       false,
		"1:name=systemd:/skep-1/box\n":        true,
		"":                                    false,
		"4:memory:/user/skep-1/box\ngarbage:": false,
	} {
		if got := g.Contains(text); got != want {
			t.Errorf("Contains(%q) = %v", text, got)
		}
	}
}
