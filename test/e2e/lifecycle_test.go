package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"
)

var drivers = []string{"gvisor", "qemu", "runc"}

// restorers are those that start from snapshots.
var restorers = []string{"gvisor", "qemu"}

// TestLifecycle runs one image under each driver, from deployed to deleted.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	s := up(t, "--idle-after", "1s")
	ref := strings.TrimSpace(s.ok("image", "build", filepath.Join(root, "functions/hello/go"), "--name", "hello"))
	if !strings.Contains(ref, "@sha256:") {
		t.Fatalf("image build printed %q, want a reference by digest", ref)
	}
	answers := map[string]string{} // by request: must be the same under all drivers
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			s := &skep{s.Skep, t}
			name := "hello-" + driver
			out := s.deployAs(name, ref, "--sandbox", driver, "--env", "TARGET=Skep", "--memory", "128Mi")
			if !strings.Contains(out, name+".default.") {
				t.Errorf("deploy does not tell the URL: %q", out)
			}
			exercise(s, name, answers)

			s.atZero(name)
			cold := s.get(name, "/")
			want := "booted"
			if slices.Contains(restorers, driver) {
				want = "restored"
			}
			if k := cold.Header.Get("X-Skep-Start"); k != want {
				t.Errorf("X-Skep-Start from zero is %q, want %s", k, want)
			}
			for _, phase := range []string{"queue;", "start-network;", "start-ready;"} {
				if timing := cold.Header.Get("Server-Timing"); !strings.Contains(timing, phase) {
					t.Errorf("Server-Timing %q lacks %q", timing, phase)
				}
			}
			if warm := s.get(name, "/"); warm.Header.Get("X-Skep-Start") != "warm" {
				t.Errorf("X-Skep-Start of a running instance is %q", warm.Header.Get("X-Skep-Start"))
			}
			// A restored instance does not begin again, and says so only once.
			if log := s.ok("logs", name); want == "booted" && strings.Count(log, "listening on 0.0.0.0:8080") < 2 {
				t.Errorf("logs of two instances: %q", log)
			}
			tell(s, name, driver)

			s.ok("delete", name)
			if left := s.instances(name); len(left) > 0 {
				t.Errorf("instances after delete: %v", left)
			}
			eventually(t, "the deleted service's host to be unknown", func() string {
				r, err := s.do(http.MethodGet, name, "/", nil)
				if err != nil || r.StatusCode != http.StatusNotFound {
					return fmt.Sprint(r.StatusCode, err)
				}
				return ""
			})
			s.fails(3, []string{name, "skep list"}, "describe", name)
		})
	}
}

// exercise asks what must be answered alike under every driver.
func exercise(s *skep, name string, answers map[string]string) {
	t := s.t
	t.Helper()
	same := func(request, answer string) {
		if want, ok := answers[request]; ok && want != answer {
			t.Errorf("%s: answers %q, another driver %q", request, answer, want)
		}
		answers[request] = answer
	}
	hello := s.get(name, "/")
	if hello.body != "Hello, Skep!\n" {
		t.Errorf("GET / answers %q", hello.body)
	}
	if hello.Header.Get("X-Request-Id") == "" || hello.Header.Get("Server-Timing") == "" {
		t.Errorf("headers are missing: %v", hello.Header)
	}
	for _, h := range []string{"X-Request-Id", "Server-Timing", "Date", "X-Skep-Start"} {
		hello.Header.Del(h)
	}
	same("GET /", fmt.Sprint(hello.Header, hello.body))

	body := make([]byte, 1<<20)
	_, _ = rand.Read(body)
	echo, err := s.do(http.MethodPost, name, "/echo", body, "X-Request-Id", "from-the-client")
	if err != nil || !bytes.Equal([]byte(echo.body), body) {
		t.Errorf("POST /echo of 1 MB: %d bytes came back, error %v", len(echo.body), err)
	}
	if id := echo.Header.Get("X-Request-Id"); id != "from-the-client" {
		t.Errorf("X-Request-Id is %q", id)
	}
	env := decode[map[string]string](t, s.get(name, "/env").body)
	for k, want := range map[string]string{
		"K_SERVICE": name, "K_CONFIGURATION": name, "K_REVISION": name + "-00001", "PORT": "8080", "TARGET": "Skep",
	} {
		if env[k] != want {
			t.Errorf("%s is %q, want %q", k, env[k], want)
		}
	}
	for _, k := range []string{"K_SERVICE", "K_CONFIGURATION", "K_REVISION", "HOSTNAME"} {
		delete(env, k)
	}
	same("GET /env", fmt.Sprint(env))
	missing, err := s.do(http.MethodGet, name, "/missing", nil)
	if err != nil {
		t.Error(err)
	} else {
		same("GET /missing", missing.Status+missing.body)
	}
}

// tell checks what the command line says of a running service.
func tell(s *skep, name, driver string) {
	t := s.t
	t.Helper()
	d := decode[struct {
		Service   v1.Service
		Revisions []v1.Revision
		Instances []struct{ Driver, Revision string }
	}](t, s.ok("describe", name, "-o", "json"))
	if !d.Service.IsReady() || len(d.Revisions) != 1 || d.Revisions[0].Name != name+"-00001" {
		t.Errorf("describe: %+v", d)
	}
	if len(d.Instances) != 1 || d.Instances[0].Driver != driver {
		t.Errorf("describe tells of the instances %+v", d.Instances)
	}
	if text := s.ok("describe", name); !strings.Contains(text, "takes 100 % of the traffic") || !strings.Contains(text, driver) {
		t.Errorf("describe:\n%s", text)
	}
	list := decode[v1.ServiceList](t, s.ok("list", "-o", "json"))
	var fromYAML v1.ServiceList
	if err := yaml.Unmarshal([]byte(s.ok("list", "-o", "yaml")), &fromYAML); err != nil {
		t.Error(err)
	}
	if len(list.Items) != 1 || len(fromYAML.Items) != 1 || list.Items[0].Name != name || list.Kind != "ServiceList" {
		t.Errorf("list -o json: %+v", list)
	}
	if table := s.ok("list"); !strings.Contains(table, name) || !strings.Contains(table, "True") {
		t.Errorf("list:\n%s", table)
	}
	s.fails(2, []string{"--output", "table"}, "list", "-o", "xml")
}

// TestRuntimes builds a function in each language; all answer alike.
func TestRuntimes(t *testing.T) {
	t.Parallel()
	s := up(t, "--sandbox", "gvisor", "--idle-after", "2s")
	s.useBaseCache()
	for _, f := range []struct{ dir, runtime string }{{"go", "go"}, {"python", "python3"}, {"node", "node"}, {"java", "java"}} {
		ref := strings.TrimSpace(s.ok("image", "build", filepath.Join(root, "functions/hello", f.dir), "--name", "hello/"+f.dir, "--runtime", f.runtime))
		on := []string{"gvisor"}
		if f.dir == "python" {
			on = drivers
		}
		for _, driver := range on {
			t.Run(f.dir+"/"+driver, func(t *testing.T) {
				s := &skep{s.Skep, t}
				name := unique(f.dir)
				s.deployAs(name, ref, "--sandbox", driver, "--memory", "256Mi")
				if r := s.get(name, "/"); r.body != "Hello, World!\n" {
					t.Errorf("answers %q", r.body)
				}
				body := bytes.Repeat([]byte{0, 1, 0xff}, 100_000)
				if r, err := s.do(http.MethodPost, name, "/echo", body); err != nil || !bytes.Equal([]byte(r.body), body) {
					t.Errorf("POST /echo: %d bytes came back, want %d; error %v", len(r.body), len(body), err)
				}
				if env := decode[map[string]string](t, s.get(name, "/env").body); env["K_SERVICE"] != name {
					t.Errorf("K_SERVICE is %q", env["K_SERVICE"])
				}
				s.ok("delete", name)
			})
		}
	}
}

// TestDeploySource builds and deploys in one step, and again.
func TestDeploySource(t *testing.T) {
	t.Parallel()
	s := shared(t)
	name := unique("source")
	s.deleteAtEnd(name)
	for _, target := range []string{"first", "second"} {
		s.ok("deploy", name, "--source", filepath.Join(root, "functions/hello/go"), "--env", "TARGET="+target, "--wait-timeout", "80s")
		if out := s.ok("invoke", name); out != "Hello, "+target+"!\n" {
			t.Errorf("invoke: %q", out)
		}
	}
	r := s.run("invoke", name, "--path", "/echo", "--data", "what?", "-H", "X-Request-Id: mine", "-i", "--timings")
	if r.Code != 0 || !strings.Contains(r.Stdout, "what?") || !strings.Contains(r.Stdout, "X-Request-Id: mine") || !strings.Contains(r.Stderr, "upstream") {
		t.Errorf("invoke -i --timings: %+v", r)
	}
	s.fails(1, []string{"404"}, "invoke", name, "--path", "/missing")
}
