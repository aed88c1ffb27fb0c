package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/skep-dev/skep/test/skeptest"
)

// variant writes the probe with another configuration as an OCI layout.
func variant(t *testing.T, change func(*v1.ConfigFile)) string {
	t.Helper()
	c, err := probe.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	change(c)
	img, err := mutate.ConfigFile(probe, c)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layoutOf(dir, img)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBadFunctions deploys what cannot work. The cause is told, with the code 4.
func TestBadFunctions(t *testing.T) {
	t.Parallel()
	s := shared(t)
	s.ok("image", "import", variant(t, func(c *v1.ConfigFile) { c.Config.Entrypoint = []string{"/no/such/program"} }), "--name", "local/entrypoint:v1")
	s.ok("image", "import", variant(t, func(c *v1.ConfigFile) { c.Config.User = "nobody-knows" }), "--name", "local/user:v1")
	deaf := manifest("deaf", `serving.knative.dev/progress-deadline: "3s"`, probeRef, "env: [{name: MODE, value: deaf}]")
	for _, c := range []struct {
		name  string
		args  []string // of deploy
		yaml  string   // or a manifest
		words []string
	}{
		{name: "unknown image on the node", args: []string{"--image", s.Endpoints.Registry + "/un/known:v1"}, words: []string{"ImagePullFailed", "un/known:v1", "push or import"}},
		{name: "registry not there", args: []string{"--image", "127.0.0.1:1/un/known:v1"}, words: []string{"ImagePullFailed", "127.0.0.1:1"}},
		{name: "exits", args: []string{"--image", probeRef, "--env", "MODE=exit"}, words: []string{"ContainerExited", "exit code 3", "boom"}},
		{name: "missing entrypoint", args: []string{"--image", "local/entrypoint:v1"}, words: []string{"/no/such/program"}},
		{name: "missing entrypoint qemu", args: []string{"--image", "local/entrypoint:v1", "--sandbox", "qemu"}, words: []string{"/no/such/program"}},
		{name: "missing entrypoint runc", args: []string{"--image", "local/entrypoint:v1", "--sandbox", "runc"}, words: []string{"/no/such/program"}},
		{name: "unknown user", args: []string{"--image", "local/user:v1"}, words: []string{"nobody-knows"}},
		{name: "out of memory gvisor", args: []string{"--image", probeRef, "--env", "MODE=hog", "--memory", "48Mi"}, words: []string{"OOMKilled", "48 MiB", "--memory"}},
		{name: "out of memory qemu", args: []string{"--image", probeRef, "--env", "MODE=hog", "--memory", "48Mi", "--sandbox", "qemu"}, words: []string{"OOMKilled", "48 MiB"}},
		{name: "out of memory runc", args: []string{"--image", probeRef, "--env", "MODE=hog", "--memory", "48Mi", "--sandbox", "runc"}, words: []string{"OOMKilled", "48 MiB"}},
		{name: "unknown sandbox", args: []string{"--image", probeRef, "--sandbox", "chroot"}, words: []string{`"chroot"`}},
		{name: "port never opened", yaml: deaf, words: []string{"8080", "0.0.0.0:$PORT", "I do not listen"}},
		{name: "wrong port", yaml: manifest("port", `serving.knative.dev/progress-deadline: "3s"`, probeRef, "readinessProbe: {tcpSocket: {port: 81}}"), words: []string{"81"}},
		{name: "probe of a path", yaml: manifest("path", `serving.knative.dev/progress-deadline: "3s"`, probeRef, "readinessProbe: {httpGet: {path: '/status?code=500'}}"), words: []string{"500"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name != "out of memory qemu" {
				// That one starves: a guest which is short of memory and of
				// an emulated processor's time can thrash for minutes.
				t.Parallel()
			}
			s := &skep{s.Skep, t}
			name := unique("bad")
			s.deleteAtEnd(name)
			args := append([]string{"deploy", name, "--wait-timeout", "85s"}, c.args...)
			if c.yaml != "" {
				args = append(args, "-f", write(t, "service.yaml", strings.ReplaceAll(c.yaml, "NAME", name)))
			}
			s.fails(4, c.words, args...)
			if t.Failed() {
				t.Logf("logs: %s\ndescribe:\n%s", s.run("logs", name).Stdout, s.run("describe", name).Stdout)
			}
			if n := s.instances(name); len(n) > 0 {
				t.Errorf("instances of what does not work: %+v", n)
			}
			out, _ := s.kubectl("", "get", "events", "--field-selector", "involvedObject.name="+name, "-o", "jsonpath={.items[*].message}")
			if !strings.Contains(out, c.words[len(c.words)-1]) {
				t.Errorf("the events say %q, want %q", out, c.words[len(c.words)-1])
			}
			s.fails(4, c.words[:1], "invoke", name)
		})
	}
}

// manifest is a service; NAME stands for its name.
func manifest(_, annotation, image, container string) string {
	return fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: NAME
  %s
spec:
  template:
    metadata:
      annotations:
        %s
    spec:
      containers:
      - image: %s
        %s
`, "labels: {app: e2e}", annotation, image, container)
}

// TestBadUsage gives the command line what it must refuse at once.
func TestBadUsage(t *testing.T) {
	t.Parallel()
	s := shared(t)
	service := func(rest string) string {
		return "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: twice}\nspec: {template: {spec: {containers: [{image: a.b/c" + rest + "}]}}}\n"
	}
	for _, c := range []struct {
		name  string
		code  int
		args  []string
		yaml  string
		words []string
	}{
		{name: "not YAML", code: 2, args: []string{"deploy"}, yaml: "a: [b", words: []string{"service.yaml"}},
		{name: "empty", code: 2, args: []string{"deploy"}, yaml: "\n", words: []string{"service.yaml"}},
		{name: "another kind", code: 2, args: []string{"deploy"}, yaml: "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n", words: []string{"Deployment"}},
		{name: "unknown field", code: 2, args: []string{"deploy"}, yaml: service(", imagee: x"), words: []string{"imagee"}},
		{name: "two of a name", code: 2, args: []string{"deploy"}, yaml: service("") + "---\n" + service(""), words: []string{"twice"}},
		{name: "another name", code: 2, args: []string{"deploy", "once"}, yaml: service(""), words: []string{"twice", "once"}},
		{name: "bad quantity in YAML", code: 2, args: []string{"deploy"}, yaml: service(", resources: {limits: {memory: lots}}"), words: []string{"memory"}},
		{name: "negative concurrency", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--concurrency", "-1"}, words: []string{"containerConcurrency"}},
		{name: "memory too small", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--memory", "1Mi"}, words: []string{"--memory", "16Mi"}},
		{name: "bad quantity", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--memory", "lots"}, words: []string{"--memory", "lots"}},
		{name: "bad CPU", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--cpu", "two"}, words: []string{"--cpu", "two"}},
		{name: "bad env", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--env", "novalue"}, words: []string{"--env", "novalue"}},
		{name: "bad name", code: 2, args: []string{"deploy", "Not_A_Name", "--image", "a.b/c"}, words: []string{"metadata.name"}},
		{name: "bad port", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--port", "70000"}, words: []string{"70000"}},
		{name: "bad protocol", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--protocol", "quic"}, words: []string{"quic"}},
		{name: "bad time-out", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--timeout", "1500ms"}, words: []string{"--timeout"}},
		{name: "no image", code: 2, args: []string{"deploy", "x"}, words: []string{"image", "source", "filename"}},
		{name: "image and source", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--source", "."}, words: []string{"image", "source"}},
		{name: "no name", code: 2, args: []string{"deploy", "--image", "a.b/c"}, words: []string{"NAME"}},
		{name: "unknown flag", code: 2, args: []string{"deploy", "--imag", "a.b/c"}, words: []string{"--imag"}},
		{name: "unknown command", code: 2, args: []string{"deplyo"}, words: []string{"deplyo"}},
		{name: "no argument", code: 2, args: []string{"describe"}, words: []string{"arg"}},
		{name: "no such manifest", code: 2, args: []string{"deploy", "-f", "/no/such.yaml"}, words: []string{"/no/such.yaml"}},
		{name: "no such source", code: 2, args: []string{"deploy", "x", "--source", "/no/such/folder"}, words: []string{"/no/such/folder"}},
		{name: "bad runtime", code: 2, args: []string{"image", "build", ".", "--name", "x", "--runtime", "cobol"}, words: []string{"cobol", "python3"}},
		{name: "no such namespace", code: 3, args: []string{"deploy", "x", "--image", "a.b/c", "-n", "nowhere"}, words: []string{"nowhere", "kubectl create namespace nowhere"}},
		{name: "scales that contradict", code: 2, args: []string{"deploy", "x", "--image", "a.b/c", "--min-scale", "3", "--max-scale", "2"}, words: []string{"min-scale=3", "max-scale=2"}},
		{name: "describe nothing", code: 3, args: []string{"describe", "nothing"}, words: []string{"nothing", "skep list"}},
		{name: "invoke nothing", code: 3, args: []string{"invoke", "nothing"}, words: []string{"nothing"}},
		{name: "logs of nothing", code: 3, args: []string{"logs", "nothing"}, words: []string{"nothing"}},
		{name: "delete nothing", code: 3, args: []string{"delete", "nothing"}, words: []string{"nothing"}},
		{name: "delete without a name", code: 2, args: []string{"delete"}, words: []string{"--all"}},
		{name: "remove no image", code: 3, args: []string{"image", "remove", "no/such:image"}, words: []string{"no/such:image"}},
		{name: "import nothing", code: 2, args: []string{"image", "import", "/no/such.tar"}, words: []string{"/no/such.tar"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			args := c.args
			if c.yaml != "" {
				args = append(append([]string(nil), args...), "-f", write(t, "service.yaml", c.yaml))
			}
			(&skep{s.Skep, t}).fails(c.code, c.words, args...)
		})
	}
	t.Run("no daemon", func(t *testing.T) {
		t.Parallel()
		none := &skeptest.Skep{Binary: binary, Dir: t.TempDir()}
		for _, args := range [][]string{{"list"}, {"deploy", "x", "--image", "a.b/c"}, {"image", "list"}, {"logs", "x"}} {
			(&skep{none, t}).fails(5, []string{"skep up"}, args...)
		}
	})
}

// TestBadImages imports what is no image for this machine.
func TestBadImages(t *testing.T) {
	t.Parallel()
	s := shared(t)
	text := filepath.Join(t.TempDir(), "text.tar")
	if err := os.WriteFile(text, []byte(strings.Repeat("no archive at all\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	arm := variant(t, func(c *v1.ConfigFile) { c.Architecture = "arm64"; c.Variant = "v8" })
	for _, c := range []struct {
		name  string
		path  string
		words []string
	}{
		{"text", text, []string{"text.tar", "neither an OCI layout nor"}},
		{"empty folder", t.TempDir(), []string{"neither an OCI layout"}},
		{"another architecture", arm, []string{"arm64", "amd64"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			(&skep{s.Skep, t}).fails(1, c.words, "image", "import", c.path, "--name", "local/bad:v1")
		})
	}
	// The registry takes any platform; deploying says what is wrong.
	skopeo(t, "copy", "oci:"+arm, "docker://"+s.Endpoints.Registry+"/bad/arm:v1")
	name := unique("arm")
	s.deleteAtEnd(name)
	s.fails(4, []string{"arm64", "amd64"}, "deploy", name, "--image", s.Endpoints.Registry+"/bad/arm:v1", "--wait-timeout", "60s")
}

// TestDiskFull: what does not fit is refused with the cause, leaves nothing
// behind, and what is there goes on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := prepared(t, "--sandbox", "gvisor")
	images := filepath.Join(s.Dir, "images")
	if err := os.MkdirAll(images, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", images, "tmpfs", 0, "size=14m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(images, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s.up()
	s.importProbe() // blobs and root file system: about 9 MiB
	name := s.deploy("fits")
	free := func() uint64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(images, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bavail * uint64(st.Bsize)
	}
	before := free()
	noise := make([]byte, 12<<20)
	_, _ = rand.Read(noise)
	big := filepath.Join(t.TempDir(), "big")
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return tarOf("noise", noise) })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(probe, layer)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeLayout(big, img); err != nil {
		t.Fatal(err)
	}
	s.fails(1, []string{"no space left on device"}, "image", "import", big, "--name", "local/big:v1")
	if now := free(); now+64<<10 < before {
		t.Errorf("%d bytes were free before the failed import, %d after it", before, now)
	}
	s.get(name, "/")
}

func tarOf(name string, content []byte) (io.ReadCloser, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	return io.NopCloser(&b), w.Close()
}
