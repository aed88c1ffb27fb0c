package sandboxtest

import (
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
)

// identity is what the guest says about itself.
type identity struct {
	UID, GID           int
	Groups             []int
	Cwd, Hostname      string
	CapEff, NoNewPrivs string
	Seccomp            string
}

func testProcess(t *testing.T, s *suite) {
	b := s.serve(t, func(spec *sandbox.Spec) {
		spec.Process = sandbox.Process{
			Args: []string{"guest", "serve", ":8080"}, // found in PATH
			Env:  []string{"GREETING=hello = world", "EMPTY=", "PATH=/nowhere:/usr/bin"},
			Cwd:  "/srv",
		}
	})
	var args, env []string
	b.get(t, "/args", &args)
	if want := []string{"guest", "serve", ":8080"}; !slices.Equal(args, want) {
		t.Errorf("arguments %q, want %q", args, want)
	}
	b.get(t, "/env", &env)
	for _, kv := range []string{"GREETING=hello = world", "EMPTY=", "PATH=/nowhere:/usr/bin", "HOME=/root", "HOSTNAME=conformance"} {
		if !slices.Contains(env, kv) {
			t.Errorf("environment %q has no %q", env, kv)
		}
	}
	var id identity
	b.get(t, "/id", &id)
	if id.UID != 0 || id.GID != 0 || id.Cwd != "/srv" || id.Hostname != "conformance" {
		t.Errorf("identity %+v, want root in /srv on host conformance", id)
	}
	if !s.driver.Capabilities().OwnKernel {
		if id.NoNewPrivs != "1" || id.Seccomp != "2" {
			t.Errorf("identity %+v: want no new privileges, and a seccomp filter", id)
		}
	}
	for name, want := range map[string]string{"localhost": "127.0.0.1", "conformance": b.spec.Link.Address.IP.String()} {
		var addrs []string
		b.get(t, "/resolve", &addrs, "name", name)
		if !slices.Contains(addrs, want) {
			t.Errorf("%s resolves to %q, want %s", name, addrs, want)
		}
	}
}

func testUsers(t *testing.T, s *suite) {
	for _, test := range []struct {
		user     string
		uid, gid int
		groups   []int // among others, perhaps the primary one
		home     string
	}{
		{"alice", 1000, 1000, []int{50}, "/home/alice"},
		{"alice:audio", 1000, 29, nil, "/home/alice"},
		{"4242:4343", 4242, 4343, nil, "/"},
	} {
		t.Run(strings.ReplaceAll(test.user, ":", "_"), func(t *testing.T) {
			b := s.serve(t, func(spec *sandbox.Spec) { spec.Process.User = test.user })
			var id identity
			b.get(t, "/id", &id)
			if id.UID != test.uid || id.GID != test.gid {
				t.Errorf("identity %+v, want %+v", id, test)
			}
			for _, g := range test.groups {
				if !slices.Contains(id.Groups, g) {
					t.Errorf("groups %v have no %d", id.Groups, g)
				}
			}
			if strings.Trim(id.CapEff, "0") != "" {
				t.Errorf("effective capabilities %s, want none", id.CapEff)
			}
			var env []string
			b.get(t, "/env", &env)
			if !slices.Contains(env, "HOME="+test.home) {
				t.Errorf("environment %q has no HOME=%s", env, test.home)
			}
			if body, err := b.try(s.ctx(t), "/write?path=/etc/passwd&data=x", nil); err == nil {
				t.Errorf("an ordinary user could write /etc/passwd: %s", body)
			}
		})
	}
}

func testOutput(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	b.waitOutput(t, "stdout", "guest: to stdout\n")
	b.waitOutput(t, "stderr", "guest: to stderr\n")
	long := strings.Repeat("long line ", 1000)
	b.get(t, "/print", nil, "text", long)
	b.waitOutput(t, "stdout", long+"\n")
	if out := b.output(t, "stdout"); strings.Contains(out, "to stderr") {
		t.Errorf("stderr is in stdout: %q", out)
	}
}

func testRootfs(t *testing.T, s *suite) {
	a, b := s.serve(t, nil), s.serve(t, nil)
	a.get(t, "/write", nil, "path", "/srv/data", "data", "changed")
	a.get(t, "/write", nil, "path", "/srv/new", "data", "new")
	a.get(t, "/write", nil, "path", "/tmp/new", "data", "new")
	for path, want := range map[string]string{"/srv/data": "changed", "/srv/new": "new", "/tmp/new": "new"} {
		var got string
		if a.get(t, "/read", &got, "path", path); got != want {
			t.Errorf("%s is %q after writing %q", path, got, want)
		}
	}
	var got string
	if b.get(t, "/read", &got, "path", "/srv/data"); got != "from the image" {
		t.Errorf("another sandbox sees %q", got)
	}
	for _, path := range []string{"/srv/new", "/tmp/new"} {
		if body, err := b.try(s.ctx(t), "/read?path="+path, nil); err == nil {
			t.Errorf("another sandbox sees %s: %s", path, body)
		}
	}
}
