// Package initramfs builds the first file system of a micro-VM: the agent and
// the kernel modules it loads.
package initramfs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds an unpacked kernel module.
const maxModule = 64 << 20

// Modules is a kernel's directory of modules.
type Modules struct {
	dir     string
	deps    map[string][]string // module's path -> paths it needs, nearest first
	paths   map[string]string   // name -> path
	builtin map[string]bool     // by name
}

// ReadModules reads a directory such as /lib/modules/6.1.0-1-cloud-amd64.
func ReadModules(dir string) (*Modules, error) {
	m := &Modules{dir: dir, deps: map[string][]string{}, paths: map[string]string{}, builtin: map[string]bool{}}
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	if err := m.parseDep(string(dep)); err != nil {
		return nil, fmt.Errorf("kernel modules: %s/modules.dep: %w", dir, err)
	}
	built, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	for _, p := range strings.Fields(string(built)) {
		m.builtin[moduleName(p)] = true
	}
	return m, nil
}

func (m *Modules) parseDep(s string) error {
	sc := bufio.NewScanner(strings.NewReader(s))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		path, needs, ok := strings.Cut(sc.Text(), ":")
		if !ok || !filepath.IsLocal(path) {
			return fmt.Errorf("unexpected line %q", sc.Text())
		}
		m.deps[path] = strings.Fields(needs)
		m.paths[moduleName(path)] = path
	}
	return sc.Err()
}

// moduleName is the name the kernel knows: the file's, with underscores and
// without endings.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// Order returns the paths, relative to the directory, of the modules wanted
// and of all they need, in the order in which they must be loaded. Names that
// are built into the kernel are left out.
func (m *Modules) Order(wanted ...string) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var visit func(path string, depth int) error
	visit = func(path string, depth int) error {
		if seen[path] {
			return nil
		}
		seen[path] = true
		if depth > 64 {
			return fmt.Errorf("kernel modules: dependencies of %s are too deep", path)
		}
		needs, ok := m.deps[path]
		if !ok {
			return fmt.Errorf("kernel modules: %s is needed but not in modules.dep", path)
		}
		for i := len(needs) - 1; i >= 0; i-- {
			if err := visit(needs[i], depth+1); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range wanted {
		path, ok := m.paths[name]
		if !ok {
			if m.builtin[name] {
				continue
			}
			return nil, fmt.Errorf("kernel modules: the guest kernel lacks %s (%s)", name, m.dir)
		}
		if err := visit(path, 0); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// Read returns a module, unpacked and without the signature at its end:
// checking that takes an emulated guest milliseconds for each, and proves
// nothing about files that come from the host.
func (m *Modules) Read(path string) ([]byte, error) {
	f, err := os.Open(filepath.Join(m.dir, path))
	if err != nil {
		return nil, fmt.Errorf("kernel module: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".xz":
		r, err = xz.NewReader(f)
	case ".zst":
		var z *zstd.Decoder
		z, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
		if err == nil {
			defer z.Close()
			r = z
		}
	case ".gz":
		r, err = gzip.NewReader(f)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", path, err)
	}
	if len(b) > maxModule {
		return nil, fmt.Errorf("kernel module %s: larger than %d bytes", path, maxModule)
	}
	return stripSignature(b), nil
}

const signatureMark = "~Module signature appended~\n"

// stripSignature cuts what the kernel's sign-file appended: the signature,
// struct module_signature (12 bytes, of which the last 4 are the signature's
// length), and the mark.
func stripSignature(b []byte) []byte {
	body, ok := bytes.CutSuffix(b, []byte(signatureMark))
	if !ok || len(body) < 12 {
		return b
	}
	n := int64(body[len(body)-4])<<24 | int64(body[len(body)-3])<<16 | int64(body[len(body)-2])<<8 | int64(body[len(body)-1])
	end := int64(len(body)) - 12 - n
	if end <= 0 {
		return b
	}
	return body[:end]
}
