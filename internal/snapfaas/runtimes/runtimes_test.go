package runtimes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapfaas/guest"
	"github.com/skep-dev/skep/internal/testenv"
)

// app is an example for a runtime, ready to be run on this machine.
type app struct {
	command []string
	dir     string // with the app
}

// compile makes the program and the app of a language.
func compile(t *testing.T, name string) app {
	t.Helper()
	src, dir := t.TempDir(), t.TempDir()
	files, err := Source(name)
	if err != nil {
		t.Fatal(err)
	}
	for f, text := range files {
		if err := os.WriteFile(filepath.Join(src, f), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	example, err := filepath.Abs("../../../functions/snapfaas/hello-" + name)
	if err != nil {
		t.Fatal(err)
	}
	run := func(dir, name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	switch name {
	case "python3":
		return app{[]string{testenv.Tool(t, "python3", "python3"), "-u", src + "/main.py"}, example}
	case "nodejs":
		return app{[]string{testenv.Tool(t, "node", "nodejs"), src + "/index.js"}, example}
	case "java":
		javac := testenv.Tool(t, "javac", "default-jdk-headless")
		run(src, javac, "-d", src, "SkepRuntime.java")
		run(example, javac, "-d", dir, "Workload.java")
		return app{[]string{testenv.Tool(t, "java", "default-jre-headless"), "-XX:+UseSerialGC", "-cp", src, "SkepRuntime"}, dir}
	default:
		goTool := testenv.Tool(t, "go", "golang-go")
		run(src, goTool, "build", "-o", "runtime", ".")
		run(example, goTool, "build", "-o", dir+"/workload", ".")
		return app{[]string{src + "/runtime"}, dir}
	}
}

// start runs a runtime and returns how to connect to it.
func start(t *testing.T, command []string, dir string) func() *guest.Conn {
	t.Helper()
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("SKEP_RUNTIME_PORT=%d", port), "SKEP_RUNTIME_APP="+dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return func() *guest.Conn {
		t.Helper()
		for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
			conn, err := net.Dial("tcp4", address)
			if err == nil {
				c, err := guest.Open(ctx, conn)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			select {
			case <-ctx.Done():
				t.Fatal(err)
			case <-time.After(wait):
			}
		}
	}
}

func TestRuntimes(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, ctx := compile(t, name), t.Context()
			// As in a guest: the folder is empty until the app's disk is mounted.
			srv := filepath.Join(t.TempDir(), "srv")
			connect := start(t, a.command, srv)
			c := connect()
			if c.Point() != guest.Language || c.Runtime != name {
				t.Fatalf("it is at the point %q of %q", c.Point(), c.Runtime)
			}
			if _, err := c.Request(ctx, []byte(`{}`)); err == nil || !strings.Contains(err.Error(), "no app") {
				t.Errorf("a request without an app: %v", err)
			}
			if err := c.LoadApp(ctx); err == nil {
				t.Error("an app that is not there was loaded")
			}
			if err := os.Symlink(a.dir, srv); err != nil {
				t.Fatal(err)
			}
			if err := c.LoadApp(ctx); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(ctx); err != nil {
				t.Errorf("hang up: %v", err)
			}
			c = connect() // as after a snapshot
			if c.Point() != guest.App {
				t.Errorf("it is at the point %q", c.Point())
			}
			hello(t, c, `{"name":"Ann \u00e9\ud83d\ude00\n"}`, `hello, Ann é😀\n`)
			hello(t, c, `null`, `hello, world`)
			hello(t, c, `{"name":null,"x":[1,-2.5e3,true,{"y":"\\"}]}`, `hello, `)
			if err := c.Close(ctx); err != nil {
				t.Errorf("hang up: %v", err)
			}
		})
		t.Run(name+" with its app inside", func(t *testing.T) {
			t.Parallel()
			a := compile(t, name)
			c := start(t, a.command, a.dir)()
			if c.Point() != guest.App {
				t.Errorf("it is at the point %q", c.Point())
			}
			hello(t, c, `{"name":"Bo"}`, `hello, Bo`)
		})
	}
}

// An app whose answer is not JSON has failed once, no more.
func TestAnswerIsNoJSON(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"python3": {"workload.py": "def handle(o): return {'a': {1}, 'b': float('nan')}.get(o if isinstance(o, str) else '', 'fine')\n"},
		"nodejs":  {"workload.js": "exports.handle = (o) => { const c = {}; c.c = c; return { a: 1n, b: c }[o] || 'fine'; };\n"},
		"java": {"Workload.java": `public class Workload {
			public static Object handle(Object o) {
				return "a".equals(o) ? new Object() : "b".equals(o) ? (Object) Double.NaN : "fine";
			}
		}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := compile(t, name)
			dir := t.TempDir()
			for f, text := range files {
				if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if name == "java" {
				if out, err := exec.Command(testenv.Tool(t, "javac", "default-jdk-headless"), "-d", dir, dir+"/Workload.java").CombinedOutput(); err != nil {
					t.Fatalf("javac: %v\n%s", err, out)
				}
			}
			c := start(t, a.command, dir)()
			for _, payload := range []string{`"a"`, `"b"`} {
				got, err := c.Request(t.Context(), []byte(payload))
				var app *guest.AppError
				if !errors.As(err, &app) {
					t.Errorf("%s: %s, %v", payload, got, err)
				}
			}
			hello(t, c, `{}`, "fine")
		})
	}
}

func hello(t *testing.T, c *guest.Conn, payload, want string) {
	t.Helper()
	got, err := c.Request(t.Context(), []byte(payload))
	var app *guest.AppError
	if err != nil && !errors.As(err, &app) {
		t.Fatal(err)
	}
	if s := unescape(string(got)); !strings.Contains(s, want) {
		t.Errorf("%s: %s, %v; want %s", payload, s, err, want)
	}
}

// unescape levels the ways of writing a character in JSON.
func unescape(s string) string {
	s = strings.NewReplacer(`\u00e9`, "é", `\ud83d\ude00`, "😀", `\u000a`, `\n`).Replace(s)
	return s
}

func TestSourceUnknown(t *testing.T) {
	if _, err := Source("perl"); err == nil || !strings.Contains(err.Error(), "python3") {
		t.Error(fmt.Errorf("unknown runtime: %w", err))
	}
}
