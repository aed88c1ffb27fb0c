package images

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/skep-dev/skep/internal/snapfaas/runtimes"
	"github.com/skep-dev/skep/internal/testenv"
)

// cacheDir is where the bases of tests are kept from run to run.
func cacheDir(t *testing.T) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "skep-test", "build")
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// list is what an image holds: the paths of everything.
func list(t *testing.T, path string) (fs.FS, []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	image, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	err = fs.WalkDir(image, ".", func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return image, names
}

func options(t *testing.T, out string) Options {
	return Options{Out: out, CacheDir: cacheDir(t), Progress: func(s string) { t.Log(s) }}
}

func TestAppAsItIs(t *testing.T) {
	dir := folder(t, map[string]string{
		"workload.py": "def handle(o): return o\n", "lib/a.py": "x = 1\n", ".git/config": "secret", "__pycache__/x": "",
	})
	if err := os.Symlink("lib/a.py", filepath.Join(dir, "link.py")); err != nil {
		t.Fatal(err)
	}
	var images [][]byte
	for _, name := range []string{"one", "two"} {
		out := filepath.Join(t.TempDir(), name)
		if err := BuildApp(t.Context(), AppOptions{Options: options(t, out), Dir: dir}); err != nil {
			t.Fatal(err)
		}
		image, names := list(t, out)
		if want := []string{".", "lib", "lib/a.py", "link.py", "workload.py"}; !slices.Equal(names, want) {
			t.Errorf("it holds %q, want %q", names, want)
		}
		if b, err := fs.ReadFile(image, "workload.py"); err != nil || !strings.HasPrefix(string(b), "def handle") {
			t.Errorf("%q, %v", b, err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, b)
		// What else the machine knows of files does not matter.
		_ = os.Chtimes(filepath.Join(dir, "workload.py"), testTime, testTime)
		_ = os.Chmod(filepath.Join(dir, "workload.py"), 0o644)
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("the same folder gave different images")
	}
}

func TestEmpty(t *testing.T) {
	out := filepath.Join(t.TempDir(), "empty")
	if err := WriteEmpty(t.Context(), options(t, out)); err != nil {
		t.Fatal(err)
	}
	if _, names := list(t, out); len(names) != 1 {
		t.Errorf("it holds %q", names)
	}
}

func TestAppGo(t *testing.T) {
	testenv.Tool(t, "go", "golang-go")
	out := filepath.Join(t.TempDir(), "app")
	err := BuildApp(t.Context(), AppOptions{Options: options(t, out), Dir: "../../../functions/snapfaas/hello-go"})
	if err != nil {
		t.Fatal(err)
	}
	if _, names := list(t, out); !slices.Equal(names, []string{".", "workload"}) {
		t.Errorf("it holds %q", names)
	}
}

func TestRuntimeGoWithApp(t *testing.T) {
	testenv.Tool(t, "go", "golang-go")
	out := filepath.Join(t.TempDir(), "runtime")
	err := BuildRuntime(t.Context(), RuntimeOptions{Options: options(t, out), Name: "go", App: "../../../functions/snapfaas/hello-go"})
	if err != nil {
		t.Fatal(err)
	}
	_, names := list(t, out)
	for _, want := range []string{"srv/workload", "app/function", strings.TrimPrefix(RuntimePath, "/")} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing", want)
		}
	}
}

// Java's app is compiled on this machine, on a base that is kept.
func TestJava(t *testing.T) {
	testenv.Root(t)
	testenv.Tool(t, "javac", "default-jdk-headless")
	testenv.Tool(t, "mmdebstrap", "mmdebstrap")
	out := filepath.Join(t.TempDir(), "app")
	err := BuildApp(t.Context(), AppOptions{Options: options(t, out), Dir: "../../../functions/snapfaas/hello-java"})
	if err != nil {
		t.Fatal(err)
	}
	if _, names := list(t, out); !slices.Equal(names, []string{".", "function.jar"}) {
		t.Errorf("it holds %q", names)
	}
	out = filepath.Join(t.TempDir(), "runtime")
	if err := BuildRuntime(t.Context(), RuntimeOptions{Options: options(t, out), Name: "java"}); err != nil {
		t.Fatal(err)
	}
	image, _ := list(t, out)
	script, err := fs.ReadFile(image, strings.TrimPrefix(RuntimePath, "/"))
	if err != nil || !strings.HasPrefix(string(script), "#!/bin/sh\n") || !strings.Contains(string(script), "\nexec '/usr/bin/java' ") ||
		!strings.HasSuffix(string(script), " 'SkepRuntime'\n") {
		t.Errorf("%s, %v", script, err)
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, test := range []struct {
		files         []string
		runtime, want string
	}{
		{nil, "", "no workload.py"},
		{[]string{"main.py"}, "", "no workload.py"},
		{[]string{"workload.py", "workload.js"}, "", "python3 or nodejs"},
		{[]string{"workload.py"}, "java", "nothing in it is an app for java"},
		{[]string{"workload.py", "apt.txt"}, "", "--package"},
		{[]string{"workload.py"}, "perl", "want python3, nodejs, go, java"},
	} {
		files := map[string]string{}
		for _, f := range test.files {
			files[f] = ""
		}
		if _, err := planApp(folder(t, files), test.runtime); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want %q", test.files, err, test.want)
		}
	}
	o := options(t, t.TempDir())
	if err := WriteEmpty(t.Context(), o); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("output is a folder: %v", err)
	}
	if err := BuildRuntime(t.Context(), RuntimeOptions{Options: o, Name: "perl"}); err == nil {
		t.Error("an unknown runtime was built")
	}
	o.Out = filepath.Join(t.TempDir(), "none", "out")
	if err := BuildRuntime(t.Context(), RuntimeOptions{Options: o, Name: "go"}); err == nil || !strings.Contains(err.Error(), "output: ") {
		t.Errorf("output in no folder: %v", err)
	}
	o.Out = filepath.Join(t.TempDir(), "out")
	if err := BuildRuntime(t.Context(), RuntimeOptions{Options: o, Name: "go", App: o.Out}); err == nil || !strings.Contains(err.Error(), "app folder: ") {
		t.Errorf("app in no folder: %v", err)
	}
	for _, name := range runtimes.Names() {
		if languages[name] == "" {
			t.Errorf("%s cannot be built", name)
		}
	}
}

func TestQuote(t *testing.T) {
	if got := quote("it's"); got != `'it'\''s'` {
		t.Error(got)
	}
}

var testTime = time.Unix(1_000_000_000, 0)
