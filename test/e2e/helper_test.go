package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/test/skeptest"
)

// patience is for what takes a moment; nothing is measured with it.
const patience = 90 * time.Second

// daemons bounds how many own daemons run at a time.
var daemons = make(chan struct{}, 3)

// skep is a daemon in a test.
type skep struct {
	*skeptest.Skep
	t *testing.T
}

// shared is the daemon of all tests that need none of their own.
func shared(t *testing.T) *skep { return &skep{sharedBy, t} }

// prepared makes a data folder for a daemon that is not started yet. At the
// end of the test nothing of it may be left.
func prepared(t *testing.T, args ...string) *skep {
	t.Helper()
	select {
	case daemons <- struct{}{}:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	t.Cleanup(func() { <-daemons })
	dir, err := os.MkdirTemp("/tmp", "skep-e2e-") // t.TempDir() is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	s := &skep{&skeptest.Skep{Binary: binary, Dir: dir, Args: args}, t}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("skep up ended with: %v", err)
		}
		if s.Endpoints != nil {
			s.wantNothingLeft()
		}
		if t.Failed() {
			t.Logf("the end of skep's log:\n%s", s.LogTail())
		}
		_ = os.RemoveAll(dir)
	})
	return s
}

// up starts a daemon of the test's own.
func up(t *testing.T, args ...string) *skep {
	t.Helper()
	s := prepared(t, args...)
	s.up()
	return s
}

func (s *skep) up() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Up(ctx); err != nil {
		s.t.Fatal(err)
	}
}

func (s *skep) wantNothingLeft() {
	s.t.Helper()
	left, err := skeptest.Leftovers(s.Dir, s.Endpoints.NodeID)
	if err != nil {
		s.t.Error(err)
	}
	for _, l := range left {
		s.t.Errorf("left behind: %s", l)
	}
}

// run runs a command of the command line, whatever its end.
func (s *skep) run(args ...string) skeptest.Result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := s.Run(ctx, args...)
	if r.Code < 0 {
		s.t.Fatalf("%v", err)
	}
	return r
}

// ok runs a command that must succeed and returns its standard output.
func (s *skep) ok(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.Code != 0 {
		s.t.Fatalf("skep %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// fails runs a command that must end with the code and say all the words.
func (s *skep) fails(code int, words []string, args ...string) {
	s.t.Helper()
	wantFailure(s.t, s.run(args...), code, words, args)
}

func wantFailure(t *testing.T, r skeptest.Result, code int, words, args []string) {
	t.Helper()
	if r.Code != code {
		t.Errorf("skep %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("skep %s: does not say %q:\n%s", strings.Join(args, " "), w, r.Stderr)
		}
	}
	if n := strings.Count(strings.TrimSpace(r.Stderr), "\n"); n > 25 || strings.Contains(r.Stderr, "goroutine ") {
		t.Errorf("skep %s: not an error message for people:\n%s", strings.Join(args, " "), r.Stderr)
	}
}

var names atomic.Int64

// name makes a name for a service that no other test uses.
func unique(prefix string) string { return fmt.Sprintf("%s-%d", prefix, names.Add(1)) }

// deploy deploys the probe under a name of its own and deletes it at the end.
func (s *skep) deploy(prefix string, args ...string) string {
	s.t.Helper()
	name := unique(prefix)
	s.deployAs(name, probeRef, args...)
	return name
}

func (s *skep) deployAs(name, image string, args ...string) string {
	s.t.Helper()
	s.deleteAtEnd(name)
	return s.ok(append([]string{"deploy", name, "--image", image, "--wait-timeout", "80s"}, args...)...)
}

// deleteAtEnd keeps the shared daemon small.
func (s *skep) deleteAtEnd(name string) {
	s.t.Cleanup(func() {
		if s.Running() {
			_, _ = s.Run(context.Background(), "delete", name)
		}
	})
}

// importProbe stores the probe's image on a daemon of the test's own.
func (s *skep) importProbe() *skep {
	s.t.Helper()
	s.ok("image", "import", probeDir, "--name", probeRef)
	return s
}

// reply is a response that was read.
type reply struct {
	*http.Response
	body string
}

// do sends a request to a service through the gateway.
func (s *skep) do(method, service, path string, body []byte, headers ...string) (reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.Host(service)+path, bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	c := s.Client()
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return reply{resp, string(b)}, err
}

// get requests a path that must answer 200 and returns the response.
func (s *skep) get(service, path string) reply {
	s.t.Helper()
	r, err := s.do(http.MethodGet, service, path, nil)
	if err != nil {
		s.t.Fatalf("GET %s of %s: %v", path, service, err)
	}
	if r.StatusCode != http.StatusOK {
		s.t.Fatalf("GET %s of %s: %s\n%s", path, service, r.Status, r.body)
	}
	return r
}

// instances of a service that run now.
func (s *skep) instances(service string) []admin.Instance {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	all, err := admin.NewClient(s.Endpoints.Admin).Instances(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	var out []admin.Instance
	for _, i := range all {
		if i.Service == service {
			out = append(out, i)
		}
	}
	return out
}

// eventually polls until f returns "", and fails with what it said last.
func eventually(t *testing.T, what string, f func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		last := f()
		if last == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s", what, last)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// atZero waits until a service has no instance.
func (s *skep) atZero(service string) {
	s.t.Helper()
	eventually(s.t, service+" to scale to zero", func() string {
		if n := len(s.instances(service)); n > 0 {
			return fmt.Sprintf("%d instances", n)
		}
		return ""
	})
}

// kubectl runs kubectl with the generated kubeconfig.
func (s *skep) kubectl(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kubectl", args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Endpoints.Kubeconfig, "HOME="+s.Dir)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *skep) kubectlOK(stdin string, args ...string) string {
	s.t.Helper()
	out, err := s.kubectl(stdin, args...)
	if err != nil {
		s.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func decode[T any](t *testing.T, s string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("decode %q: %v", s, err)
	}
	return v
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// useBaseCache lets `skep image build` keep its language bases where the next
// run of the tests finds them.
func (s *skep) useBaseCache() {
	s.t.Helper()
	if err := os.MkdirAll(baseCache, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.Dir, "cache"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Symlink(baseCache, filepath.Join(s.Dir, "cache", "bases")); err != nil {
		s.t.Fatal(err)
	}
}

// deploy0 deploys an image under a name of its own.
func (s *skep) deploy0(prefix, image string, args ...string) string {
	s.t.Helper()
	name := unique(prefix)
	s.deployAs(name, image, args...)
	return name
}
