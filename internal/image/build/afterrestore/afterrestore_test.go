package afterrestore

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

func folders(t *testing.T, paths ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, p := range paths {
		if err := write(filepath.Join(root, p), []byte("before\n")); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// run runs a program and returns its output.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", name, err, out, stderr.String())
	}
	return string(out)
}

// TestProviders looks at both architectures' files: they must need nothing of
// the image that they come into.
func TestProviders(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		b, err := files.ReadFile("openssl/skeprand-" + arch + ".so")
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		libs, err := f.ImportedLibraries()
		if f.Machine != machine || f.Type != elf.ET_DYN || err != nil || len(libs) > 0 {
			t.Errorf("%s: %v, %v, needs %v, %v", arch, f.Machine, f.Type, libs, err)
		}
		symbols, err := f.DynamicSymbols()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range symbols {
			if s.Section == elf.SHN_UNDEF {
				t.Errorf("%s: needs symbol %s", arch, s.Name)
			}
		}
		if !slices.ContainsFunc(symbols, func(s elf.Symbol) bool { return s.Name == "OSSL_provider_init" }) {
			t.Errorf("%s: no OSSL_provider_init", arch)
		}
	}
}

func TestOpenSSL(t *testing.T) {
	const lib = "usr/lib/test"
	if root := folders(t, "etc/ssl/openssl.cnf"); OpenSSL(root, lib) != nil {
		t.Error("an image without OpenSSL 3 is refused")
	}
	root := folders(t, "etc/ssl/openssl.cnf", lib+"/libcrypto.so.3")
	if err := OpenSSL(root, lib); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(root, "etc/ssl/openssl.cnf")
	b, err := os.ReadFile(conf)
	if err != nil || !strings.HasPrefix(string(b), "before\n") || !strings.Contains(string(b), "module = /"+lib) {
		t.Fatalf("configuration %q, %v", b, err)
	}
	// A real OpenSSL takes it, with the configuration's path as it is here.
	tool := testenv.Tool(t, "openssl", "openssl")
	text := strings.ReplaceAll(strings.TrimPrefix(string(b), "before\n"), "/"+lib, filepath.Join(root, lib))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"OPENSSL_CONF=" + conf}
	if out := run(t, env, tool, "list", "-random-instances"); strings.Count(out, "SKEP-KERNEL") != 3 {
		t.Errorf("random instances: %s", out)
	}
	// Longer than what the generator takes at a time, and different each time.
	one, two := run(t, env, tool, "rand", "200000"), run(t, env, tool, "rand", "200000")
	if len(one) != 200000 || one == two || strings.Contains(one, strings.Repeat("\x00", 16)) {
		t.Errorf("random bytes: %d, the same: %t", len(one), one == two)
	}
}

// TestPython has a program notice a restore with the next connection.
func TestPython(t *testing.T) {
	python := testenv.Tool(t, "python3", "python3")
	root := folders(t)
	if err := Python(root); err != nil {
		t.Fatal(err)
	}
	out := run(t, []string{"PYTHONPATH=" + filepath.Join(root, pyDir)}, python, "-S", "-c", `
import sys
import skep_restore as r
early = [m for m in ("socket", "random", "tempfile") if m in sys.modules]
import random, socket, tempfile, uuid
r._MACHINE_ID = sys.argv[1]
r._last = r._machine()
l = socket.create_server(("127.0.0.1", 0))
def connect():
    with socket.create_connection(l.getsockname()), l.accept()[0]:
        pass
def restore(id):
    with open(r._MACHINE_ID, "w") as f:
        f.write(id)
called = []
r.after(lambda: called.append(1))
state = random.getstate()
connect()
assert random.getstate() == state and not called, "seeded without a restore"
restore("two")
connect()
assert random.getstate() != state and called == [1], "not seeded after a restore"
node = uuid.uuid1().node
restore("three")
connect()
assert uuid.uuid1().node != node and node >> 40 & 1, "uuid1 of one node"
for seeds in (lambda: random.seed(42), lambda: random.setstate(state), lambda: random.seed(a="x")):
    seeds()
    s = random.getstate()
    restore(str(seeds))
    connect()
    assert random.getstate() == s, "the program's own seed is lost"
random.seed()
s = random.getstate()
restore("four")
connect()
assert random.getstate() != s, "not seeded after seed()"
r.after(lambda: 1 / 0)
restore("five")
connect()
name = type(tempfile._get_candidate_names().rng).__name__
assert name == "SystemRandom", name
print(early)
`, filepath.Join(root, "machine-id"))
	if strings.TrimSpace(out) != "[]" {
		t.Errorf("loads ahead of the program: %s", out)
	}
}

// TestNode does so with Node.js.
func TestNode(t *testing.T) {
	node := testenv.Tool(t, "node", "nodejs")
	root := folders(t, "machine-id")
	if err := Node(root); err != nil {
		t.Fatal(err)
	}
	// The file's path cannot be set from outside: a restore is simulated by
	// what reads it.
	run(t, nil, node, "-e", `
const fs = require('fs');
const read = fs.readFileSync;
let id = 'one';
fs.readFileSync = (path, ...rest) => path === '/etc/machine-id' ? id : read(path, ...rest);
require(process.argv[1]);
const assert = require('assert');
const crypto = require('crypto');
const net = require('net');
let restored = 0;
process.on('skep:restored', () => restored++);
const d = Object.getOwnPropertyDescriptor(Math, 'random');
assert(d.writable && d.configurable && !d.enumerable && Math.random.name === 'random');
let sum = 0;
const n = 1e5, seen = new Set();
for (let i = 0; i < n; i++) {
  const x = Math.random();
  assert(x >= 0 && x < 1);
  sum += x;
  seen.add(x);
}
assert(Math.abs(sum / n - 0.5) < 0.01 && seen.size === n, String(sum / n));
const s = net.createServer((c) => c.end()).listen(0, '127.0.0.1', () => connect(() => {
  assert.strictEqual(restored, 0);
  id = 'two';
  const before = crypto.randomUUID();
  connect(() => connect(() => {
    assert.strictEqual(restored, 1);
    assert.notStrictEqual(crypto.randomUUID(), before);
    s.close();
  }));
}));
function connect(then) {
  net.connect(s.address().port, '127.0.0.1').resume().on('close', then);
}
`, filepath.Join(root, nodeFile))
}

func TestGo(t *testing.T) {
	goroot := strings.TrimSpace(run(t, nil, testenv.Tool(t, "go", "golang"), "env", "GOROOT"))
	dir := t.TempDir()
	file, err := Go("/goroot", dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	var overlay struct{ Replace map[string]string }
	if err != nil || json.Unmarshal(b, &overlay) != nil || len(overlay.Replace) != len(GoPackages) {
		t.Fatalf("overlay %s, %v", b, err)
	}
	for target, source := range overlay.Replace {
		if _, err := os.Stat(source); err != nil || !strings.HasPrefix(target, "/goroot/src/") {
			t.Errorf("%s: %s: %v", target, source, err)
		}
		if _, err := os.Stat(filepath.Join(goroot, strings.TrimPrefix(target, "/goroot/"))); err == nil {
			t.Errorf("%s is there in Go itself", target)
		}
	}
}

func TestJava(t *testing.T) {
	root := folders(t, "etc/java-17-openjdk/security/java.security")
	var got []string
	err := Java(root, filepath.Join(t.TempDir(), "work"), "17", func(sources []string, dir, jar string) error {
		for _, s := range sources {
			if _, err := os.Stat(filepath.Join(dir, s)); err != nil {
				return err
			}
		}
		got = sources
		return write(jar, nil)
	})
	if err != nil || len(got) != 3 {
		t.Fatalf("sources %v, %v", got, err)
	}
	b, err := os.ReadFile(filepath.Join(root, "etc/java-17-openjdk/security/java.security"))
	if err != nil || !strings.HasPrefix(string(b), "before\n") || !strings.Contains(string(b), "pr_and_reseed") {
		t.Errorf("java.security %q, %v", b, err)
	}
	if err := Java(t.TempDir(), t.TempDir(), "17", nil); err == nil {
		t.Error("a root without java.security is taken")
	}
}
