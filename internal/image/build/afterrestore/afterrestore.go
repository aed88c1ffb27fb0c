// Package afterrestore is what images bring so that functions restored from
// one snapshot differ in what they take for random.
//
// A restored kernel is given fresh entropy, but a process also has random
// state of its own, and nothing tells it that it is a clone. So:
//
//   - What must be secret keeps no state outside the kernel. OpenSSL gets a
//     provider that asks the kernel each time, Java the generator of its own
//     that does so. This needs no notice of a restore, and no moment is left
//     in which clones are alike.
//   - Generators for other purposes, and caches, are seeded again as soon as
//     the first connection after a restore is accepted, before its request is
//     read: a connection does not survive a snapshot, so there is one. That
//     the machine ID is another one than before tells a restore; the sandbox
//     contract has every driver give a new one before work is handed over.
//
// docs/clones.md says what this means for functions.
package afterrestore

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

// Paths in an image.
const (
	dir      = "usr/lib/skep"
	nodeFile = dir + "/skep-restore.cjs"
	javaFile = dir + "/skep-restore.jar"
	pyDir    = "usr/lib/python3/dist-packages"

	// NodeFlag has node load what it needs.
	NodeFlag = "--require=/" + nodeFile
	// JavaFlag has the JVM load what it needs.
	JavaFlag = "-javaagent:/" + javaFile
)

//go:generate openssl/build.sh
//go:embed openssl/*.so python node java golang
var files embed.FS

// Digest changes with what images bring.
var Digest = sync.OnceValue(func() string {
	h := sha256.New()
	_ = fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := files.ReadFile(name) // embedded: it cannot fail
		fmt.Fprintf(h, "%s %d\n", name, len(b))
		h.Write(b)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:8])
})

// opensslConf is added to OpenSSL's configuration. Node.js looks for a section
// of its own; in the image it uses the same library.
const opensslConf = `
# Added by skep image build: random bytes come from the kernel each time, so
# that nothing of them is in a snapshot.
[default]
openssl_conf = openssl_init
nodejs_conf = skep_node
[openssl_init]
providers = skep_providers
random = skep_random
[skep_node]
providers = skep_providers
random = skep_random
[skep_providers]
default = skep_default
skeprand = skep_provider
[skep_default]
activate = 1
[skep_provider]
module = %s
activate = 1
[skep_random]
random = SKEP-KERNEL
`

// OpenSSL sets up the OpenSSL below root, if there is one that works with
// providers. library is the folder of shared libraries, relative to root.
func OpenSSL(root, library string) error {
	conf := filepath.Join(root, "etc/ssl/openssl.cnf")
	for _, f := range []string{conf, filepath.Join(root, library, "libcrypto.so.3")} {
		if _, err := os.Stat(f); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
	module := filepath.Join(library, "ossl-modules", "skeprand.so")
	if err := install("openssl/skeprand-"+runtime.GOARCH+".so", filepath.Join(root, module)); err != nil {
		return err
	}
	return appendTo(conf, fmt.Sprintf(opensslConf, "/"+module))
}

// Python sets up the Python below root. Byte code is left to the caller.
func Python(root string) error {
	if err := install("python/skep_restore.py", filepath.Join(root, pyDir, "skep_restore.py")); err != nil {
		return err
	}
	// Python's site module runs these lines at the start of each interpreter.
	return write(filepath.Join(root, pyDir, "skep_restore.pth"), []byte("import skep_restore\n"))
}

// Node brings what NodeFlag names.
func Node(root string) error {
	return install("node/skep-restore.cjs", filepath.Join(root, nodeFile))
}

// Java sets up the Java below root and brings what JavaFlag names. compile
// makes a jar of the Java sources of a folder; work is to become that.
func Java(root, work, version string, compile func(sources []string, dir, jar string) error) error {
	security := filepath.Join(root, "etc", "java-"+version+"-openjdk", "security", "java.security")
	if st, err := os.Lstat(security); err != nil {
		return err
	} else if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", security)
	}
	more, err := files.ReadFile("java/java.security")
	if err != nil {
		return err
	}
	if err := appendTo(security, string(more)); err != nil {
		return err
	}
	var sources []string
	err = fs.WalkDir(files, "java", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".java" {
			return err
		}
		name := strings.TrimPrefix(path, "java/")
		sources = append(sources, name)
		return install(path, filepath.Join(work, name))
	})
	if err != nil {
		return err
	}
	jar := filepath.Join(root, javaFile)
	if err := os.MkdirAll(filepath.Dir(jar), 0o755); err != nil {
		return err
	}
	return compile(sources, work, jar)
}

// Go writes to dir what adds to the standard library of a Go installation, and
// returns the file for go build -overlay. Files are only added, none replaced;
// GoPackages get one each.
func Go(goroot, dir string) (overlay string, err error) {
	replace := map[string]string{}
	for name, target := range map[string]string{
		"runtime.go": "src/runtime/skep_restore_linux.go",
		"poll.go":    "src/internal/poll/skep_restore_linux.go",
	} {
		path := filepath.Join(dir, name)
		if err := install("golang/"+name+".txt", path); err != nil {
			return "", err
		}
		replace[filepath.Join(goroot, target)] = path
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, write(overlay, b)
}

// GoPackages are what Go adds to.
var GoPackages = []string{"runtime", "internal/poll"}

func install(name, path string) error {
	b, err := files.ReadFile(name)
	if err != nil {
		return err
	}
	return write(path, b)
}

func write(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

func appendTo(path, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, text...), 0o644)
}
