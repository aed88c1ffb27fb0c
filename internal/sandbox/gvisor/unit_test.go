package gvisor

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"testing/fstest"
)

func TestRunscArgs(t *testing.T) {
	for _, test := range []struct {
		args, want []string
	}{
		{args: nil},
		{args: []string{"skep"}},
		{args: []string{"skep", "up"}},
		{args: []string{"skep", "up", "runsc"}},
		{args: []string{"/proc/self/exe"}},
		{args: []string{"/proc/self/exe", "up"}},
		{args: []string{"skep", "runsc"}, want: []string{"runsc"}},
		{args: []string{"/usr/bin/skep", "runsc", "--root=x", "state"}, want: []string{"runsc", "--root=x", "state"}},
		{args: []string{"runsc-sandbox", "boot"}, want: []string{"runsc-sandbox", "boot"}},
		{args: []string{"/usr/bin/runsc", "boot"}, want: []string{"/usr/bin/runsc", "boot"}},
		{args: []string{"/proc/self/exe", "umount"}, want: []string{"/proc/self/exe", "umount"}},
	} {
		got, ok := runscArgs(test.args)
		if ok != (test.want != nil) || ok && !slices.Equal(got, test.want) {
			t.Errorf("runscArgs(%q) = %q, %v; want %q", test.args, got, ok, test.want)
		}
	}
}

func TestCPUs(t *testing.T) {
	n := runtime.NumCPU()
	for millis, want := range map[int64]int{0: n, 1: min(n, 2), 1000: min(n, 2), 2001: min(n, 3), 1 << 40: n} {
		if got := cpus(millis); got != want {
			t.Errorf("cpus(%d) = %d, want %d", millis, got, want)
		}
	}
}

func TestTarOf(t *testing.T) {
	image := fstest.MapFS{
		"etc/passwd": {Mode: 0o644},
		"etc":        {Mode: 0o711 | os.ModeDir},
		"file":       {Mode: 0o644},
	}
	host := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(host, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := tarOf(map[string]string{"etc/hosts": host, "new/dir/x": host, "file/hosts": host}, image)
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]int64{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := modes[h.Name]; ok {
			t.Errorf("%s is there twice", h.Name)
		}
		modes[h.Name] = h.Mode
		if h.Typeflag == tar.TypeReg {
			if content, _ := io.ReadAll(r); string(content) != "content" {
				t.Errorf("%s contains %q", h.Name, content)
			}
		}
	}
	want := map[string]int64{"./": 0o555, "./etc/": 0o711, "./etc/hosts": 0o644, "./new/": 0o755, "./new/dir/": 0o755, "./new/dir/x": 0o644}
	for name, mode := range want {
		if modes[name]&0o777 != mode {
			t.Errorf("%s: mode %o, want %o", name, modes[name], mode)
		}
		delete(modes, name)
	}
	if len(modes) > 0 {
		t.Errorf("too much in the archive: %v", modes)
	}
}

func TestVersion(t *testing.T) {
	if Version() == "" {
		t.Error("Version() is empty")
	}
}
