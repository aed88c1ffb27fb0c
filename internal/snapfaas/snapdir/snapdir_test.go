package snapdir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapfaas/guest"
)

var machine = Machine{MemoryMiB: 128, VCPUs: 1, Rootfs: "r", Driver: sandbox.Compatibility{Version: "7", Kernel: "k", CPUFeatures: []string{"a", "b"}}}

// write makes a snapshot in a new folder.
func write(t *testing.T, id, base string) string {
	t.Helper()
	dir := t.TempDir()
	if err := fill(dir, id, base); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fill makes a snapshot in a folder.
func fill(dir, id, base string) error {
	return Write(dir, Meta{ID: id, Base: base, Point: guest.App, Machine: machine}, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, sandbox.FileMemory), []byte(id), 0o600)
	})
}

func TestWriteOpen(t *testing.T) {
	base, diff, top := write(t, "b", ""), write(t, "d", "b"), write(t, "t", "d")
	s, err := Open(base, diff, top)
	if err != nil || s.ID != "t" || s.Point != guest.App || strings.Join(s.Dirs, " ") != top+" "+diff+" "+base {
		t.Fatalf("%+v, %v", s, err)
	}
	if err := s.Fits(machine); err != nil {
		t.Error(err)
	}
	if i, err := s.Image(false); err != nil || i.WorkingSet != "" || len(i.Dirs) != 3 {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := s.Image(true); err == nil || !strings.Contains(err.Error(), "make it with --dump_ws") {
		t.Errorf("no working set: %v", err)
	}
	for i, name := range []string{"WS", "WS-d", "WS-t"} { // of before, of another snapshot, of this one
		if err := os.WriteFile(filepath.Join(top, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		switch image, err := s.Image(true); {
		case i == 2 && (err != nil || image.WorkingSet != s.WorkingSet() || image.WorkingSet != filepath.Join(top, name)):
			t.Errorf("%+v, %v", image, err)
		case i < 2 && (err == nil || !strings.Contains(err.Error(), "WS in "+top+" is not of the snapshot that is there, t")):
			t.Errorf("with %s: %v", name, err)
		}
	}
	if err := fill(top, "t2", "d"); err != nil {
		t.Fatal(err)
	}
	if left, err := workingSets(top); err != nil || len(left) != 0 {
		t.Errorf("working sets of a snapshot that was replaced: %q, %v", left, err)
	}
}

func TestFolders(t *testing.T) {
	base, diff := write(t, "b", ""), write(t, "d", "b")
	s, err := Open(base, diff)
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(diff, link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what string
		err  error
		want string // "" for none
	}{
		{"set into the newest", s.CheckDumpSet(diff), ""},
		{"set into the newest by another name", s.CheckDumpSet(link), ""},
		{"set into the base", s.CheckDumpSet(base), "is not the newest folder loaded"},
		{"set into nothing", s.CheckDumpSet("/none"), "no such file"},
		{"another folder", CheckDump(t.TempDir(), s.Dirs), ""},
		{"over the base", CheckDump(base, s.Dirs), "is loaded, too"},
		{"over the diff by another name", CheckDump(link, s.Dirs), "is loaded, too"},
	} {
		if (test.err == nil) != (test.want == "") || test.err != nil && !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.what, test.err, test.want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	base, diff, alien := write(t, "b", ""), write(t, "d", "b"), write(t, "d", "x")
	for _, test := range []struct {
		dirs []string
		want string
	}{
		{nil, "0 folders"},
		{[]string{diff}, "name its base first"},
		{[]string{base, base}, "a base itself"},
		{[]string{base, alien}, "a diff of another base"},
		{[]string{t.TempDir()}, "no snapshot in it"},
		{[]string{"/none"}, "no such file"},
	} {
		if _, err := Open(test.dirs...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want %q", test.dirs, err, test.want)
		}
	}
}

func TestFits(t *testing.T) {
	s, err := Open(write(t, "b", ""))
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(m *Machine){
		"--mem_size was 128 and is 64":   func(m *Machine) { m.MemoryMiB = 64 },
		"--vcpu_count":                   func(m *Machine) { m.VCPUs = 2 },
		"root file system":               func(m *Machine) { m.Rootfs = "x" },
		"qemu was 7 and is 8":            func(m *Machine) { m.Driver.Version = "8" },
		"kernel":                         func(m *Machine) { m.Driver.Kernel = "x" },
		"agent":                          func(m *Machine) { m.Driver.Agent = "x" },
		"processor":                      func(m *Machine) { m.Driver.CPUModel = "x" },
		"processor's features are other": func(m *Machine) { m.Driver.CPUFeatures = []string{"a"} },
	} {
		m := machine
		change(&m)
		if err := s.Fits(m); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A failure leaves the folder's old snapshot alone.
func TestWriteFails(t *testing.T) {
	dir := write(t, "old", "")
	bad := errors.New("disk is full")
	err := Write(dir, Meta{ID: "new", Point: guest.App}, func(d string) error {
		_ = os.WriteFile(filepath.Join(d, sandbox.FileMemory), []byte("half"), 0o600)
		return bad
	})
	if !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
	s, err := Open(dir)
	if err != nil || s.ID != "old" {
		t.Errorf("%+v, %v", s, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
	if err := Write(filepath.Join(dir, "none"), Meta{}, nil); err == nil || !strings.Contains(err.Error(), "mkdir -p") {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"a","point":"app","machine":{"memoryMiB":1}}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := parse(in)
		if err == nil && (m.Version != version || m.ID == "") {
			t.Errorf("%q: %+v", in, m)
		}
	})
}
