package gvisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"

	"github.com/skep-dev/skep/internal/fingerprint"
	"github.com/skep-dev/skep/internal/sandbox"
)

// disk makes an EROFS image with one file.
func disk(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := erofs.Create(out)
	f, err := w.Create("/file")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckDisks(t *testing.T) {
	one, other := disk(t, "one", "content"), disk(t, "other", "CONTENT")
	b, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	same := filepath.Join(t.TempDir(), "same")
	if err := os.WriteFile(same, b, 0o600); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(t.TempDir(), "ext2")
	if err := os.WriteFile(garbage, make([]byte, 8<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := &sandbox.Spec{Disks: []string{one}}
	m, err := describeDisk(spec, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.Target = "/srv"
	if m.Content, err = fingerprint.File(one); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		disks  []string
		mounts []mounted
		err    string // "" for none
	}{
		{"none", nil, nil, ""},
		{"not mounted", []string{other}, nil, ""},
		{"mounted", []string{one, other}, []mounted{m}, ""},
		{"mounted, elsewhere now", []string{same}, []mounted{m}, ""},
		{"no EROFS", []string{one, garbage}, nil, "disks[1]: gVisor mounts EROFS only"},
		{"missing", []string{one + "x"}, nil, "no such file"},
		{"another, of the same size", []string{other}, []mounted{m}, "disks[0]: " + other + " is not the image that the snapshot has at /srv"},
		{"none given", nil, []mounted{m}, "there is no disk 0"},
	} {
		err := checkDisks(&sandbox.Spec{Disks: test.disks}, test.mounts)
		if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.err)
		}
	}
}
