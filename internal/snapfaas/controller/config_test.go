package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const example = `
allow_network: false
firerunner_path: ./firerunner
kernel_path: ./vmlinux
runtimefs_dir: ./runtimefs/
appfs_dir: ./appfs/
snapshot_dir: ./snapshot/
functions:
  hello: {network: false, runtimefs: python3.ext4, appfs: hello.ext2, vcpus: 1, memory: 128,
          concurrency_limit: 600, load_dir: "python3,hello", copy_base: false, copy_diff: true, load_ws: false}
  plain_one: {runtimefs: /abs/python3.ext4}
`

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(path, []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.KernelPath != dir+"/vmlinux" || c.FirerunnerPath != dir+"/firerunner" {
		t.Errorf("%+v", c)
	}
	m := c.Functions["hello"].Machine("hello", "/empty")
	if m.Rootfs != dir+"/runtimefs/python3.ext4" || m.App != dir+"/appfs/hello.ext2" ||
		strings.Join(m.Load.Dirs, ",") != dir+"/snapshot/python3,"+dir+"/snapshot/hello" || !m.Load.CopyDiff || m.Load.CopyBase {
		t.Errorf("%+v", m)
	}
	if err := m.Validate(); err != nil {
		t.Error(err)
	}
	f := c.Functions["plain_one"]
	m = f.Machine("plain_one", "/empty")
	if m.App != "/empty" || m.Rootfs != "/abs/python3.ext4" || m.MemoryMiB != 128 || m.VCPUs != 1 || f.ConcurrencyLimit != 1 || m.Hostname != "plain-one" {
		t.Errorf("%+v, %+v", f, m)
	}
	// Only who says so loads diffs page by page.
	yes, no := true, false
	for _, test := range []struct {
		set        *bool
		dirs       string
		copy, lazy bool
	}{{nil, "a,b", false, false}, {&yes, "a,b", true, false}, {&no, "a,b", false, true}, {&yes, "a", false, false}, {&no, "a", false, false}} {
		l := Function{CopyDiff: test.set, LoadDir: test.dirs}.Machine("f", "/empty").Load
		if l.CopyDiff != test.copy || l.LazyDiff != test.lazy {
			t.Errorf("%+v: %+v", test, l)
		}
	}
	if _, err := Load(dir + "/none.yaml"); err == nil {
		t.Error("no error for a file that is not there")
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", "there are none"},
		{"functions: [", "yaml"},
		{"colour: red\nfunctions: {a: {runtimefs: x}}", "unknown field \"colour\": want allow_network, appfs_dir, firerunner_path, functions, "},
		{"functions: {a: {runtime: x}}", "functions: a: unknown field \"runtime\": want appfs, concurrency_limit, "},
		{"functions: {a: {runtimefs: x}, a: {runtimefs: y}}", "already"},
		{"functions: {a: {runtimefs: x, copy_diff: 3}}", "copy_diff: want true or false, not a number"},
		{"functions: {a: {runtimefs: x, memory: 1.5}}", "memory: want a whole number, not a number"},
		{"[1]", "the file: want keys with values, not a list"},
		{"functions: [1]", "functions: want keys with values, not a list"},
		{"functions: {a: {appfs: x}}", "a: runtimefs: must be set"},
		{"functions: {a: {runtimefs: x, network: true}}", "allow_network is false"},
		{"functions: {a: {runtimefs: x, concurrency_limit: -1}}", "concurrency_limit"},
		{"functions: {a: {runtimefs: x, memory: -1}}", "memory"},
		{"functions: {a: {runtimefs: x, memory: lots}}", "functions: a: memory: want a whole number, not text"},
		{"functions: {../a: {runtimefs: x}}", "a name is of letters"},
		{strings.Repeat("#", maxConfig+1), "larger than"},
	} {
		if _, err := Parse([]byte(test.in)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.50q: %v, want %q", test.in, err, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("functions: {a: {runtimefs: x, load_dir: ',,'}}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Parse(in)
		if err != nil {
			return
		}
		c.resolve("/dir")
		for name, fn := range c.Functions {
			m := fn.Machine(name, "/empty")
			if !filepath.IsAbs(m.Rootfs) || !filepath.IsAbs(m.App) || m.VCPUs == 0 {
				t.Errorf("%q: %+v", in, m)
			}
		}
	})
}
