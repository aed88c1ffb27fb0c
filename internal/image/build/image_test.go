package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/skep-dev/skep/internal/testenv"
)

const functions = "../../../functions"

// TestHello builds each hello function and talks to it in a chroot of its image,
// as the image's user.
func TestHello(t *testing.T) {
	testenv.Root(t)
	for _, tc := range []struct {
		dir     string
		runtime Runtime
		tools   map[string]string
	}{
		{"hello/go", Go, nil},
		{"hello/python", Python, map[string]string{"mmdebstrap": "mmdebstrap"}},
		{"hello/node", Node, map[string]string{"mmdebstrap": "mmdebstrap"}},
		{"hello/java", Java, map[string]string{"mmdebstrap": "mmdebstrap", "javac": "default-jdk-headless"}},
	} {
		t.Run(string(tc.runtime), func(t *testing.T) {
			for tool, pkg := range tc.tools {
				testenv.Tool(t, tool, pkg)
			}
			begun := time.Now()
			img := mustBuild(t, Options{Dir: filepath.Join(functions, tc.dir)})
			if img.Runtime != tc.runtime {
				t.Fatalf("detected runtime %s, want %s", img.Runtime, tc.runtime)
			}
			size, err := totalSize(img)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("built in %v (base reused: %t), %.1f MB unpacked", time.Since(begun).Round(time.Millisecond), img.BaseReused, float64(size)/1e6)
			if err := validate.Image(img); err != nil {
				t.Fatalf("invalid image: %v", err)
			}
			checkLayers(t, img)
			root := rootOf(t, img)
			url := start(t, img, root)
			talk(t, url)

			again := mustBuild(t, Options{Dir: filepath.Join(functions, tc.dir)})
			a, aerr := img.Digest()
			b, berr := again.Digest()
			if err := errors.Join(aerr, berr); err != nil || a != b {
				t.Errorf("the same source gave %s and %s (%v)", a, b, err)
			}
		})
	}
}

func totalSize(img *Image) (n int64, err error) {
	ls, err := img.Layers()
	for _, l := range ls {
		n += l.(*fileLayer).facts.UncompressedSize
	}
	return n, err
}

// checkLayers looks at every entry: nothing with the rights of others, nothing
// of this machine.
func checkLayers(t *testing.T, img *Image) {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range layers(t, img) {
		tr := tar.NewReader(r)
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimSuffix(h.Name, "/")
			owner := owned[name]
			switch {
			case h.Mode&0o6000 != 0:
				t.Errorf("layer %d: %s is set-user-ID or set-group-ID (%o)", i, name, h.Mode)
			case h.Uid != owner || h.Gid != owner:
				t.Errorf("layer %d: %s belongs to %d:%d", i, name, h.Uid, h.Gid)
			case h.ModTime.Unix() != 0:
				t.Errorf("layer %d: %s has time %v", i, name, h.ModTime)
			case h.Typeflag != tar.TypeSymlink && h.Mode&0o2 != 0 && h.Mode&0o1000 == 0:
				t.Errorf("layer %d: anyone may write %s (%o)", i, name, h.Mode)
			case !slices.Contains([]byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink}, h.Typeflag):
				t.Errorf("layer %d: %s is of type %c", i, name, h.Typeflag)
			case name == "etc/apt" || strings.HasPrefix(name, "etc/apt/") || strings.HasPrefix(name, "var/lib/apt/"):
				t.Errorf("layer %d: %s tells where packages came from", i, name)
			}
			if name == "etc/hostname" {
				b, err := io.ReadAll(tr)
				if err != nil || strings.TrimSpace(string(b)) == host {
					t.Errorf("the image names this machine: %q %v", b, err)
				}
			}
		}
	}
}

// rootOf unpacks all layers.
func rootOf(t *testing.T, img *Image) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range layers(t, img) {
		// Later layers have no folders of /usr here, whose links exist by then.
		if err := unpackTree(context.Background(), r, dir, keepAll); err != nil && (i == 0 || !errors.Is(err, os.ErrExist)) {
			t.Fatal(err)
		}
	}
	return dir
}

// layers are the image's, uncompressed and in order.
func layers(t *testing.T, img *Image) iter.Seq2[int, io.Reader] {
	t.Helper()
	ls, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func(int, io.Reader) bool) {
		for i, l := range ls {
			r, err := l.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			more := yield(i, r)
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if !more {
				return
			}
		}
	}
}

// start runs the image's entry point as its user, chrooted, in an own mount
// namespace with /proc (Java wants it), and returns its address.
func start(t *testing.T, img *Image, root string) string {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	out := &bytes.Buffer{}
	cmd := exec.Command(cf.Config.Entrypoint[0], cf.Config.Entrypoint[1:]...)
	cmd.Path = cf.Config.Entrypoint[0]
	cmd.Err = nil
	cmd.Dir = cf.Config.WorkingDir
	cmd.Env = append(slices.Clone(cf.Config.Env), fmt.Sprintf("PORT=%d", port), "TARGET=bees")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: UserID, Gid: UserID}}
	if err := syscall.Mount("proc", filepath.Join(root, "proc"), "proc", syscall.MS_NOSUID|syscall.MS_NODEV, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(filepath.Join(root, "proc"), syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	stopped := false
	t.Cleanup(func() {
		if stopped {
			return
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
			t.Errorf("does not stop on SIGTERM; it said:\n%s", out)
			_ = cmd.Process.Kill()
			<-exited
		}
	})
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	deadline := time.After(60 * time.Second)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		resp, err := http.Get(url + "/healthz")
		if err == nil {
			resp.Body.Close()
			return url
		}
		select {
		case err := <-exited:
			stopped = true
			t.Fatalf("ended (%v) before it listened:\n%s", err, out)
		case <-deadline:
			t.Fatalf("does not listen: %v", err)
		case <-time.After(wait):
		}
	}
}

// talk checks the protocol of the hello functions.
func talk(t *testing.T, url string) {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	big := strings.Repeat("wax and honey\n", 20_000)
	for _, tc := range []struct {
		method, path, body, want string
		status                   int
		chunked                  bool
	}{
		{"GET", "/", "", "Hello, bees!\n", 200, false},
		{"GET", "/?x=1", "", "Hello, bees!\n", 200, false},
		{"GET", "/healthz", "", "ok\n", 200, false},
		{"POST", "/echo", "", "", 200, false},
		{"POST", "/echo", "buzz", "buzz", 200, false},
		{"POST", "/echo", big, big, 200, false},
		{"POST", "/echo", big, big, 200, true},
		{"GET", "/nowhere", "", "", 404, false},
	} {
		var body io.Reader = strings.NewReader(tc.body)
		if tc.chunked {
			body = io.MultiReader(body)
		}
		req, err := http.NewRequest(tc.method, url+tc.path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "text/x-bee")
		resp, err := client.Do(req)
		if err != nil {
			t.Errorf("%s %s: %v", tc.method, tc.path, err)
			continue
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tc.status || tc.status == 200 && string(got) != tc.want {
			t.Errorf("%s %s (chunked %t): %d %.60q (%d bytes) %v; want %d %.60q", tc.method, tc.path, tc.chunked, resp.StatusCode, got, len(got), err, tc.status, tc.want)
		}
		if tc.path == "/echo" && resp.Header.Get("Content-Type") != "text/x-bee" {
			t.Errorf("/echo changed the content type to %q", resp.Header.Get("Content-Type"))
		}
	}
	resp, err := client.Get(url + "/env")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	env := decodeEnv(t, resp.Body)
	if env["TARGET"] != "bees" || env["HOME"] != "/home/nonroot" {
		t.Errorf("GET /env: %v", env)
	}
}
