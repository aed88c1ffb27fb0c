package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/node/journal"
	"github.com/skep-dev/skep/test/skeptest"
)

// upFails runs `skep up` that must refuse to start.
func upFails(t *testing.T, change func(*exec.Cmd), args ...string) skeptest.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"up"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it should not have started
	cmd.WaitDelay = patience
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if change != nil {
		change(cmd)
	}
	_ = cmd.Run()
	return skeptest.Result{Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
}

func TestUpRefuses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	config := write(t, "config.yaml", "liisten: 127.0.0.1:0\n")
	badValue := write(t, "config.yaml", "idle-after: soon\n")
	// Programs other than QEMU.
	bin := t.TempDir()
	for _, tool := range []string{"runc"} {
		if path, err := exec.LookPath(tool); err == nil {
			if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name   string
		args   []string
		change func(*exec.Cmd)
		code   int
		words  []string
	}{
		{name: "unknown flag", args: []string{"--lisen", "x"}, code: 2, words: []string{"--lisen"}},
		{name: "bad address", args: []string{"--listen", "here"}, code: 2, words: []string{"--listen", "127.0.0.1:8080"}},
		{name: "bad port", args: []string{"--api-listen", "127.0.0.1:http"}, code: 2, words: []string{"--api-listen", "http"}},
		{name: "registry for all", args: []string{"--registry-listen", "0.0.0.0:5000"}, code: 2, words: []string{"--registry-listen", "loopback"}},
		{name: "unknown sandbox", args: []string{"--sandbox", "chroot"}, code: 2, words: []string{"--sandbox", "chroot", "gvisor"}},
		{name: "bad accel", args: []string{"--accel", "warp"}, code: 2, words: []string{"--accel", "warp", "tcg"}},
		{name: "bad duration", args: []string{"--idle-after", "soon"}, code: 2, words: []string{"--idle-after"}},
		{name: "negative drain", args: []string{"--drain-timeout", "-1s"}, code: 2, words: []string{"--drain-timeout"}},
		{name: "idle too short", args: []string{"--idle-after", "1ms"}, code: 2, words: []string{"--idle-after"}},
		{name: "pool size", args: []string{"--pool-size", "-1"}, code: 2, words: []string{"--pool-size"}},
		{name: "bad uplinks", args: []string{"--uplinks", "ten"}, code: 2, words: []string{"--uplinks"}},
		{name: "bad domain", args: []string{"--domain", "not a domain"}, code: 2, words: []string{"--domain"}},
		{name: "bad sizes", args: []string{"--image-bytes", "-5"}, code: 2, words: []string{"--image-bytes"}},
		{name: "log format", args: []string{"--log-format", "xml"}, code: 2, words: []string{"--log-format", "json"}},
		{name: "log level", args: []string{"--log-level", "loud"}, code: 2, words: []string{"--log-level", "debug"}},
		{name: "an argument", args: []string{"now"}, code: 2, words: []string{"now"}},
		{name: "unknown key", args: []string{"--config", config}, code: 2, words: []string{"liisten", config}},
		{name: "bad value in file", args: []string{"--config", badValue}, code: 2, words: []string{"idle-after", badValue}},
		{name: "no config file", args: []string{"--config", "/no/such.yaml"}, code: 2, words: []string{"/no/such.yaml"}},
		{name: "not root", code: 1, words: []string{"root", "sudo"}, change: func(c *exec.Cmd) {
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}},
		{name: "port taken", args: []string{"--listen", taken.Addr().String()}, code: 1, words: []string{"--listen", taken.Addr().String(), "taken"}},
		{name: "API port taken", args: []string{"--api-listen", taken.Addr().String()}, code: 1, words: []string{"--api-listen", taken.Addr().String(), "taken"}},
		{name: "no kernel", args: []string{"--sandbox", "qemu", "--kernel", "/nonexistent"}, code: 1, words: []string{"/nonexistent", "linux-image-cloud-amd64"}},
		{name: "no QEMU", args: []string{"--sandbox", "qemu"}, code: 1, words: []string{"qemu-system-x86"}, change: func(c *exec.Cmd) {
			c.Env = append(os.Environ(), "PATH="+bin)
		}},
		{name: "no runc", args: []string{"--sandbox", "runc"}, code: 1, words: []string{"runc", "apt-get install runc"}, change: func(c *exec.Cmd) {
			c.Env = append(os.Environ(), "PATH="+t.TempDir())
		}},
		// The node has made its cgroup by then.
		{name: "uplinks in use", args: []string{"--uplinks", "127.0.0.0/8"}, code: 1, words: []string{"127.0.0.0/8", "overlaps"}},
		{name: "second on the same data", args: []string{"--data", sharedBy.Dir}, code: 1, words: []string{sharedBy.Dir, fmt.Sprint(sharedBy.PID())}},
		{name: "data folder is a file", args: []string{"--data", config}, code: 1, words: []string{"--data", config}},
		{name: "path too long", args: []string{"--data", "/tmp/" + strings.Repeat("x", 100)}, code: 2, words: []string{"--data", "too long"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("/tmp", "skep-e2e-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			args := []string{"--data", dir, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--registry-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"}
			wantFailure(t, upFails(t, c.change, append(args, c.args...)...), c.code, c.words, c.args)
			left, err := skeptest.Leftovers(dir, nodeID(t, dir))
			if err != nil || len(left) > 0 {
				t.Errorf("left %q, error %v", left, err)
			}
		})
	}
}

// nodeID is what a Skep that did not start chose, if it came so far.
func nodeID(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "node.db")
	if _, err := os.Stat(path); err != nil {
		return "none"
	}
	j, err := journal.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	id, err := j.Identity(t.Context(), func() string { return "none" })
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestConfiguration: flags go before the environment, which goes before the file.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	config := write(t, "config.yaml", "log-format: json\nidle-after: 3s\ndomain: from.file\npool-size: 1\nsandbox: gvisor\ninsecure-registry: [a.example, b.example]\n")
	s := prepared(t, "--config", config, "--idle-after", "2s")
	s.Env = []string{"SKEP_DOMAIN=from.environment", "SKEP_IDLE_AFTER=9h"}
	s.up()
	if d := s.Endpoints.Domain; d != "from.environment" {
		t.Errorf("domain is %q", d)
	}
	s.importProbe()
	name := s.deploy("configured", "--env", "VERSION=c")
	if r := s.get(name, "/"); r.body != "probe c\n" {
		t.Errorf("answers %q", r.body)
	}
	s.atZero(name) // after 2 s, not 9 h
	log, err := os.ReadFile(s.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(log)) {
		if strings.HasPrefix(line, "{") {
			lines++
			if !json.Valid([]byte(line)) {
				t.Errorf("not JSON: %s", line)
			}
		} else if strings.HasPrefix(line, "time=") {
			t.Errorf("not JSON: %s", line)
		}
	}
	t.Logf("%d lines of JSON", lines)
	// SKEP_DATA names the daemon for other commands, too.
	cmd := exec.Command(binary, "list")
	cmd.Env = append(os.Environ(), "SKEP_DATA="+s.Dir)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), name) {
		t.Errorf("SKEP_DATA=... skep list: %v\n%s", err, out)
	}
}

func TestCommandsWithoutDaemon(t *testing.T) {
	t.Parallel()
	s := &skep{&skeptest.Skep{Binary: binary, Dir: t.TempDir()}, t}
	if out := s.ok("version"); !strings.HasPrefix(out, "skep ") {
		t.Errorf("version: %q", out)
	}
	if v := decode[map[string]string](t, s.ok("version", "-o", "json")); v["version"] == "" || v["go"] == "" {
		t.Errorf("version: %v", v)
	}
	checks := decode[[]struct{ Name, Status, Detail string }](t, s.run("doctor", "-o", "json").Stdout)
	if len(checks) < 8 || checks[0].Name != "root" || checks[0].Status != "ok" {
		t.Errorf("doctor: %+v", checks)
	}
	if out := s.ok("doctor"); !strings.Contains(out, "runc") {
		t.Errorf("doctor:\n%s", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := s.ok("completion", shell); !strings.Contains(out, "skep") || len(out) < 1000 {
			t.Errorf("completion %s: %d bytes", shell, len(out))
		}
	}
	if out := s.ok("help", "exit-codes"); !strings.Contains(out, "5  no running skep") {
		t.Errorf("help exit-codes: %q", out)
	}
	for _, args := range [][]string{{"--help"}, {"deploy", "--help"}, {"image", "build", "--help"}} {
		if out := s.ok(args...); !strings.Contains(out, "Usage:") {
			t.Errorf("%v: %q", args, out)
		}
	}
	// Names of services come from the daemon.
	name := (&skep{sharedBy, t}).deploy("complete")
	if out := (&skep{sharedBy, t}).ok("__complete", "describe", ""); !strings.Contains(out, name+"\n") {
		t.Errorf("completion of describe: %q", out)
	}
}

// TestSIGTERMDrains: what runs ends well, what comes is refused, all is freed.
func TestSIGTERMDrains(t *testing.T) {
	t.Parallel()
	s := up(t, "--sandbox", "gvisor").importProbe()
	var names []string
	for _, driver := range drivers {
		names = append(names, s.deploy("drain", "--sandbox", driver))
	}
	type result struct {
		r   reply
		err error
	}
	results := make(chan result, len(names))
	for _, name := range names {
		go func() {
			r, err := s.do("GET", name, "/sleep?ms=2000", nil)
			results <- result{r, err}
		}()
	}
	for _, name := range names {
		eventually(t, "the request to run", func() string {
			if st := s.stats(name); st.InFlight != 1 {
				return fmt.Sprintf("%+v", st)
			}
			return ""
		})
	}
	began := time.Now()
	if err := s.Stop(); err != nil {
		t.Errorf("skep up ended with %v", err)
	}
	t.Logf("stopped after %s", time.Since(began))
	for range names {
		if got := <-results; got.err != nil || got.r.StatusCode != 200 || got.r.body != "slept\n" {
			t.Errorf("the request in flight: %v %q, error %v", got.r.Response, got.r.body, got.err)
		}
	}
	s.wantNothingLeft()
	if _, err := os.Stat(filepath.Join(s.Dir, "run", "endpoints.json")); err == nil {
		t.Error("endpoints.json is left: clients take it for a running skep")
	}
	// And everything is there again.
	s.up()
	for n, name := range names {
		want := "booted"
		if slices.Contains(restorers, drivers[n]) {
			want = "restored"
		}
		if r := s.get(name, "/"); r.Header.Get("X-Skep-Start") != want {
			t.Errorf("X-Skep-Start after a restart is %q", r.Header.Get("X-Skep-Start"))
		}
	}
}

// TestKill: after kill -9 services are there again, and nothing of the old
// sandboxes is.
func TestKill(t *testing.T) {
	t.Parallel()
	s := up(t, "--sandbox", "gvisor").importProbe()
	var names []string
	for _, driver := range drivers {
		names = append(names, s.deploy("kill", "--sandbox", driver, "--env", "VERSION="+driver))
	}
	old := map[string]bool{}
	for _, name := range names {
		for _, i := range s.instances(name) {
			old[i.ID] = true
		}
	}
	if len(old) != len(names) {
		t.Fatalf("%d instances of %d services", len(old), len(names))
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	s.up()
	for n, name := range names {
		if r := s.get(name, "/"); r.body != "probe "+drivers[n]+"\n" {
			t.Errorf("%s answers %q", name, r.body)
		}
		for _, i := range s.instances(name) {
			if old[i.ID] {
				t.Errorf("the orphan %s is taken for an instance", i.ID)
			}
		}
		if out := s.ok("describe", name); !strings.Contains(out, "ok       Ready") {
			t.Errorf("describe:\n%s", out)
		}
	}
	for id := range old {
		left, err := skeptest.LeftoversOf(s.Dir, s.Endpoints.NodeID, id)
		if err != nil || len(left) > 0 {
			t.Errorf("left of the sandbox %s: %q, error %v", id, left, err)
		}
	}
	// And once more while instances start.
	for _, name := range names {
		go func() { _, _ = s.do("GET", name, "/", nil) }()
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	s.up()
	for _, name := range names {
		s.get(name, "/")
	}
}
