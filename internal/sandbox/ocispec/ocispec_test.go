package ocispec_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

func image(files ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i+1 < len(files); i += 2 {
		m[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	return m
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/home/alice:\n1234:x:55:56::/odd:\n"
	group  = "root:x:0:\nstaff:x:50:alice,bob\nwheel:x:10:\n"
)

func TestResolveUser(t *testing.T) {
	full := image("etc/passwd", passwd, "etc/group", group)
	for _, test := range []struct {
		spec, home string
		image      fstest.MapFS
		want       specs.User
		err        string
	}{
		{spec: "", image: full, home: "/root"},
		{spec: "", image: image(), home: "/"},
		{spec: "root", image: full, home: "/root"},
		{spec: "alice", image: full, home: "/home/alice", want: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{50}}},
		{spec: "1000", image: full, home: "/home/alice", want: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{50}}},
		{spec: "alice:wheel", image: full, home: "/home/alice", want: specs.User{UID: 1000, GID: 10}},
		{spec: "alice:77", image: full, home: "/home/alice", want: specs.User{UID: 1000, GID: 77}},
		{spec: "4242:4343", image: image(), home: "/", want: specs.User{UID: 4242, GID: 4343}},
		{spec: "4242", image: full, home: "/", want: specs.User{UID: 4242}},
		{spec: "bob", image: full, err: `user "bob" not found in the image's /etc/passwd`},
		{spec: "bob", image: image(), err: `user "bob" not found in the image's /etc/passwd`},
		{spec: "bob:wheel", image: full, err: `user "bob" not found in the image's /etc/passwd`},
		{spec: "alice:bees", image: full, err: `group "bees" not found in the image's /etc/group`},
		{spec: "-1", image: full, err: `"-1"`},
		{spec: "99999999999", image: full, err: `"99999999999"`},
	} {
		got, home, err := ocispec.ResolveUser(test.image, test.spec)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: error %v, want %s", test.spec, err, test.err)
			}
			continue
		}
		if err != nil || home != test.home || got.UID != test.want.UID || got.GID != test.want.GID || !slices.Equal(got.AdditionalGids, test.want.AdditionalGids) {
			t.Errorf("%q: %+v, home %q, %v; want %+v, home %q", test.spec, got, home, err, test.want, test.home)
		}
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("alice:wheel", passwd, group)
	f.Add("0", "", "::::\n\n:x")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		u, _, err := ocispec.ResolveUser(image("etc/passwd", passwd, "etc/group", group), spec)
		if err == nil && (u.UID > 1<<31 || u.GID > 1<<31) {
			t.Errorf("user %+v is out of range", u)
		}
	})
}

func box(t *testing.T) *sandbox.Spec {
	return &sandbox.Spec{
		ID: "0123456789abcdef", Dir: t.TempDir(), Rootfs: "/image", Hostname: "box",
		Process:   sandbox.Process{Args: []string{"/app"}, Env: []string{"A=1", "HOME=/own"}},
		Resources: sandbox.Resources{MemoryBytes: 64 << 20, CPUMillis: 250, PIDs: 10},
		Link: sandbox.Link{
			NetNS: "/run/ns", Address: net.IPNet{IP: net.IPv4(172, 16, 0, 2), Mask: net.CIDRMask(30, 32)},
			DNS: []net.IP{net.IPv4(9, 9, 9, 9)},
		},
		Cgroup: "skep-1/box",
	}
}

func TestNew(t *testing.T) {
	s := box(t)
	spec, err := ocispec.New(s, ocispec.Options{Root: "rootfs", Image: image("tmp/x", ""), HostKernel: true})
	if err != nil {
		t.Fatal(err)
	}
	p := spec.Process
	if !p.NoNewPrivileges || p.Cwd != "/" || len(p.Capabilities.Inheritable) > 0 || len(p.Capabilities.Ambient) > 0 ||
		slices.Contains(p.Capabilities.Bounding, "CAP_SYS_ADMIN") || slices.Contains(p.Capabilities.Bounding, "CAP_NET_RAW") {
		t.Errorf("process %+v, capabilities %+v", p, p.Capabilities)
	}
	for _, kv := range []string{"A=1", "HOME=/own", "HOSTNAME=box", "PATH=" + ocispec.DefaultPath} {
		if !slices.Contains(p.Env, kv) {
			t.Errorf("environment %q has no %s", p.Env, kv)
		}
	}
	if slices.Contains(p.Env, "HOME=/") {
		t.Errorf("environment %q has two homes", p.Env)
	}
	l := spec.Linux
	if l.Seccomp == nil || l.Seccomp.DefaultAction != specs.ActErrno {
		t.Error("no seccomp profile")
	}
	if l.CgroupsPath != "/skep-1/box" || *l.Resources.Memory.Limit != 64<<20 || *l.Resources.CPU.Quota != 25000 || l.Resources.Pids.Limit != 10 {
		t.Errorf("cgroup %s, resources %+v", l.CgroupsPath, l.Resources)
	}
	for _, ns := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace} {
		if !slices.Contains(l.Namespaces, specs.LinuxNamespace{Type: ns}) {
			t.Errorf("no new %s namespace", ns)
		}
	}
	if !slices.Contains(l.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/ns"}) {
		t.Error("not in the link's network namespace")
	}
	for _, m := range spec.Mounts {
		if m.Destination == "/tmp" {
			t.Error("the image's /tmp is hidden")
		}
		if (m.Type == "bind" || m.Type == "sysfs" || m.Type == "cgroup") && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s is writable", m.Destination)
		}
	}
}

func TestOwnKernel(t *testing.T) {
	spec, err := ocispec.New(box(t), ocispec.Options{Root: "/r", Image: image()})
	if err != nil {
		t.Fatal(err)
	}
	if spec.Linux.Seccomp != nil || len(spec.Linux.Sysctl) > 0 {
		t.Error("a seccomp profile or sysctls for a kernel of its own")
	}
	var tmp bool
	for _, m := range spec.Mounts {
		tmp = tmp || m.Destination == "/tmp" && m.Type == "tmpfs"
		if m.Type == "cgroup" {
			t.Error("the host's cgroups are mounted")
		}
	}
	if !tmp {
		t.Error("an image without /tmp was given none")
	}
}

func TestWriteFiles(t *testing.T) {
	s := box(t)
	if err := ocispec.WriteFiles(s); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"hosts": "127.0.0.1\tlocalhost\n172.16.0.2\tbox\n", "hostname": "box\n", "resolv.conf": "nameserver 9.9.9.9\n",
	} {
		got, err := os.ReadFile(filepath.Join(s.Dir, "etc", name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestOpenImage(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{garbage: "not an EROFS image", garbage + ".missing": "no such file"} {
		if _, _, err := ocispec.OpenImage(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("OpenImage(%s): %v, want %q", path, err, want)
		}
	}
}
