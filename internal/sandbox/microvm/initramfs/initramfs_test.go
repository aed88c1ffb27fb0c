package initramfs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func modules(t *testing.T) *Modules {
	t.Helper()
	dir := t.TempDir()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte("module c"))
	_ = z.Close()
	signed := "module a" + "SIG" + strings.Repeat("\x00", 8) + "\x00\x00\x00\x03" + signatureMark
	for name, content := range map[string]string{
		"modules.dep":     "k/a.ko: k/b-b.ko k/c.ko.gz\nk/b-b.ko: k/c.ko.gz\nk/c.ko.gz:\nk/broken.ko: k/gone.ko\nk/x.ko: k/y.ko\nk/y.ko: k/x.ko\n",
		"modules.builtin": "kernel/fs/ext4/ext-4.ko\n",
		"k/a.ko":          signed,
		"k/b-b.ko":        "module b",
		"k/c.ko.gz":       packed.String(),
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := ReadModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestOrder(t *testing.T) {
	m := modules(t)
	got, err := m.Order("b_b", "ext_4", "a")
	if want := []string{"k/c.ko.gz", "k/b-b.ko", "k/a.ko"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := m.Order("x"); err != nil { // a circle must end
		t.Error(err)
	}
	for _, name := range []string{"none", "broken"} {
		if _, err := m.Order(name); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReadModules(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadModules(dir); err == nil {
		t.Error("no modules.dep: no error")
	}
	for _, dep := range []string{"no colon\n", "../../etc/passwd:\n", "/etc/passwd:\n"} {
		if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadModules(dir); err == nil {
			t.Errorf("%q: no error", dep)
		}
	}
}

func TestBuild(t *testing.T) {
	m := modules(t)
	order, err := m.Order("a")
	if err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	for _, b := range []*bytes.Buffer{&one, &two} {
		if err := Build(b, []byte("the agent"), m, order); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the same input gave different bytes")
	}
	got := map[string]string{}
	r := cpio.NewReader(&one)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(b)
	}
	for name, want := range map[string]string{
		"init":              "the agent",
		"modules/00-c.ko":   "module c", // unpacked
		"modules/01-b_b.ko": "module b",
		"modules/02-a.ko":   "module a", // without its signature
		"modules/order":     "/modules/00-c.ko\n/modules/01-b_b.ko\n/modules/02-a.ko\n",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func FuzzStripSignature(f *testing.F) {
	f.Add([]byte("module" + signatureMark))
	f.Add([]byte("module a" + "SIG" + strings.Repeat("\x00", 8) + "\x00\x00\x00\x03" + signatureMark))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := stripSignature(b); !bytes.HasPrefix(b, got) || (len(b) > 0 && len(got) == 0) {
			t.Errorf("%q became %q", b, got)
		}
	})
}
