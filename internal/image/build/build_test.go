package build

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

func decodeEnv(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	var env map[string]string
	if err := json.NewDecoder(r).Decode(&env); err != nil {
		t.Fatalf("GET /env: %v", err)
	}
	return env
}

const goMain = "package main\n\nfunc main() {}\n"

func TestDetectRuntime(t *testing.T) {
	for _, tc := range []struct {
		files []string
		want  Runtime
		err   string
	}{
		{files: []string{"go.mod", "main.go", "tools.py"}, want: Go},
		{files: []string{"main.go"}, want: Go},
		{files: []string{"requirements.txt"}, want: Python},
		{files: []string{"main.py"}, want: Python},
		{files: []string{"app.py"}, want: Python},
		{files: []string{"package.json"}, want: Node},
		{files: []string{"x.js"}, want: Node},
		{files: []string{"pom.xml"}, want: Java},
		{files: []string{"App.java", "README.md"}, want: Java},
		{files: []string{"go.mod", "package.json"}, err: "different runtimes"},
		{files: []string{"a.js", "a.py"}, err: "different runtimes"},
		{files: []string{"README.md"}, err: "no go.mod"},
		{err: "no go.mod"},
	} {
		files := map[string]string{}
		for _, f := range tc.files {
			files[f] = ""
		}
		got, err := DetectRuntime(folder(t, files))
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%v: %q, %v; want %q, error %q", tc.files, got, err, tc.want, tc.err)
		}
	}
	if _, err := DetectRuntime("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// TestBadInput wants errors that say what to change, and nothing left behind.
func TestBadInput(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		files map[string]string
		o     Options
		want  string
	}{
		{name: "empty folder", want: "no go.mod"},
		{name: "unknown runtime", o: Options{Runtime: "cobol"}, want: "want go, python3, node, java"},
		{name: "go without module", files: map[string]string{"main.go": goMain}, want: "go mod init"},
		{name: "go library", files: map[string]string{"go.mod": "module x\n", "x.go": "package x\n"}, want: "not a program"},
		{name: "go without files", files: map[string]string{"go.mod": "module x\n"}, want: "no Go files"},
		{name: "go compile error", files: map[string]string{"go.mod": "module x\n", "x.go": "package main\nfunc main() { undefinedThing() }\n"}, want: "undefined: undefinedThing"},
		{name: "go package option", files: map[string]string{"go.mod": "module x\n", "x.go": goMain}, o: Options{GoPackage: "-toolexec=x"}, want: "want a path"},
		{name: "go with apt.txt", files: map[string]string{"go.mod": "module x\n", "x.go": goMain, "apt.txt": "jq"}, want: "no Debian packages"},
		{name: "python without main", files: map[string]string{"app.py": ""}, want: "no main.py"},
		{name: "python, bad apt name", files: map[string]string{"main.py": "", "apt.txt": "ok\n--option\n"}, want: `apt.txt line 2: "--option"`},
		{name: "node without start", files: map[string]string{"package.json": "{}"}, want: "nothing to start"},
		{name: "node, main missing", files: map[string]string{"package.json": `{"main":"../x.js"}`}, want: "no file"},
		{name: "node, bad manifest", files: map[string]string{"package.json": `{`}, want: "package.json"},
		{name: "node, shell in start", files: map[string]string{"package.json": `{"scripts":{"start":"node x.js && rm -rf /"}}`}, want: "plain arguments"},
		{name: "java without source", o: Options{Runtime: Java}, want: "no pom.xml and no *.java"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := tc.o
			o.Dir, o.CacheDir = folder(t, tc.files), t.TempDir()
			img, err := tryBuild(t, o)
			if err == nil {
				img.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			checkNoWork(t, o.CacheDir)
		})
	}
}

func checkNoWork(t *testing.T, cache string) {
	t.Helper()
	if m, err := filepath.Glob(filepath.Join(cache, "work-*")); err != nil || len(m) > 0 {
		t.Errorf("left behind: %v %v", m, err)
	}
}

// TestBadSource is bad input that needs a base to be found out.
func TestBadSource(t *testing.T) {
	testenv.Tool(t, "mmdebstrap", "mmdebstrap")
	for _, tc := range []struct {
		name  string
		files map[string]string
		o     Options
		want  string
	}{
		{name: "python syntax", files: map[string]string{"main.py": "def f(:\n"}, want: "SyntaxError"},
		{name: "python, link out of the folder", files: map[string]string{"main.py": "", "out": "->/etc/shadow"}, want: "outside of the source folder"},
		{name: "python, too large", files: map[string]string{"main.py": strings.Repeat("#", 2000)}, o: Options{MaxSourceBytes: 1000}, want: "larger than the limit"},
		{name: "requirements, unknown", files: map[string]string{"main.py": "", "requirements.txt": "skep-no-such-package-7d2f==1\n"}, want: "skep-no-such-package-7d2f"},
		{name: "requirements, bad line", files: map[string]string{"main.py": "", "requirements.txt": "==!!\n"}, want: "requirements.txt"},
		{name: "java compile error", files: map[string]string{"Main.java": "class Main { public static void main(String[] a) { nope(); } }"}, want: "nope()"},
		{name: "java without main", files: map[string]string{"A.java": "class A {}"}, want: "no class with a main method"},
		{name: "unknown apt package", files: map[string]string{"main.py": "", "apt.txt": "skep-no-such-package"}, want: "there is no package skep-no-such-package"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := tc.o
			for n, text := range tc.files {
				if target, ok := strings.CutPrefix(text, "->"); ok {
					delete(tc.files, n)
					o.Dir = folder(t, tc.files)
					if err := os.Symlink(target, filepath.Join(o.Dir, n)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if o.Dir == "" {
				o.Dir = folder(t, tc.files)
			}
			if _, ok := tc.files["A.java"]; ok || tc.files["Main.java"] != "" {
				testenv.Tool(t, "javac", "default-jdk-headless")
			}
			img, err := tryBuild(t, o)
			if err == nil {
				img.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if err != nil && len(err.Error()) > 4*maxToolOutput {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestCancel(t *testing.T) {
	testenv.Tool(t, "mmdebstrap", "mmdebstrap")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o := Options{Dir: folder(t, map[string]string{"main.py": ""}), CacheDir: t.TempDir(), Progress: func(string) {},
		Log: writerFunc(func(b []byte) {
			if strings.Contains(string(b), "using /") { // mmdebstrap has its folder
				cancel()
			}
		})}
	img, err := Build(ctx, o)
	if err == nil {
		img.Close()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want cancelled", err)
	}
	checkNoWork(t, o.CacheDir)
}

type writerFunc func(b []byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}

// TestDamagedBase wants a base whose file changed to be noticed.
func TestDamagedBase(t *testing.T) {
	t.Parallel()
	dir, root := t.TempDir(), folder(t, map[string]string{"a/b": "c"})
	l, err := packTree(context.Background(), root, filepath.Join(dir, layerFile), epoch0)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := json.Marshal(baseMeta{Layer: l.facts, Version: "3.11"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, metaFile), meta, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := openBase(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.layer.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, layerFile), l.facts.Size-1); err != nil {
		t.Fatal(err)
	}
	if _, err := openBase(dir); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("error %v, want damaged", err)
	}
	if _, err := openBase(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want does not exist", err)
	}
}
