package firecracker

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/sandbox/microvm"
)

func machine() savedMachine {
	return savedMachine{
		Format: machineFormat, Firecracker: "v1.2.3",
		Saved: microvm.Saved{
			MemoryMiB: 128, CPUs: 1, MAC: "06:00:00:00:00:01",
			Address: "10.0.0.2/24", Gateway: "10.0.0.1", RootBytes: 4096, Token: make([]byte, 32),
		},
	}
}

func TestMachineRoundTrip(t *testing.T) {
	dir := t.TempDir()
	state := []byte("firecracker's own")
	sum := sha256.Sum256(state)
	want := machine()
	want.StateSHA256 = hex.EncodeToString(sum[:])
	i := sandbox.Image{Dirs: []string{dir}}
	if err := errors.Join(want.write(i.File(fileMachine)), os.WriteFile(i.File(sandbox.FileState), state, 0o600)); err != nil {
		t.Fatal(err)
	}
	got, b, err := readMachine(&i)
	if err != nil || string(b) != string(state) {
		t.Fatalf("state %q, %v", b, err)
	}
	if err := got.fits(&want); err != nil {
		t.Errorf("it does not fit itself: %v", err)
	}
	if renewed, err := got.NewDisks(&want.Saved); renewed || err != nil {
		t.Errorf("its own disks are new to it: %v", err)
	}
	info, err := os.Stat(i.File(fileMachine))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the agent's secret is in a file of mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(i.File(sandbox.FileState), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readMachine(&i); !errors.Is(err, microvm.ErrDamaged) {
		t.Errorf("another state: %v", err)
	}
}

func TestFits(t *testing.T) {
	for word, change := range map[string]func(*savedMachine){
		"Firecracker": func(m *savedMachine) { m.Firecracker = "v1.2.4" },
		"memory":      func(m *savedMachine) { m.MemoryMiB++ },
		"processors":  func(m *savedMachine) { m.CPUs++ },
		"huge pages":  func(m *savedMachine) { m.HugePages = true },
		"MAC":         func(m *savedMachine) { m.MAC = "06:00:00:00:00:02" },
		"address":     func(m *savedMachine) { m.Address = "10.0.0.3/24" },
		"root":        func(m *savedMachine) { m.RootBytes++ },
		"disks":       func(m *savedMachine) { m.Disks = make([]microvm.SavedDisk, 1) },
	} {
		was, now := machine(), machine()
		change(&now)
		if err := was.fits(&now); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: error is %v", word, err)
		}
	}
}

func FuzzMachine(f *testing.F) {
	dir := f.TempDir()
	m := machine()
	if err := m.write(filepath.Join(dir, "m")); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "m"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"Format":1,"MemoryMiB":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseMachine(b)
		if err == nil && (s.MemoryMiB <= 0 || len(s.Token) != 32) {
			t.Errorf("accepted: %+v", s)
		}
	})
}

// pages writes a file whose pages are filled with one byte each; zero is
// written, too.
func pages(t *testing.T, dir, name string, fill string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for _, c := range []byte(fill) {
		p := make([]byte, pager.PageSize)
		for i := range p {
			p[i] = c - '0'
		}
		if _, err := f.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// data says which pages of a file are there: x, and which are holes: dot.
func data(t *testing.T, f *os.File, n int) string {
	t.Helper()
	var s strings.Builder
	for i := range n {
		at := int64(i) * pager.PageSize
		next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == nil && next == at {
			s.WriteByte('x')
		} else {
			s.WriteByte('.')
		}
	}
	return s.String()
}

func TestThin(t *testing.T) {
	dir := t.TempDir()
	whole := pages(t, dir, "whole", "0120034500")
	if err := thin(t.Context(), whole, nil); err != nil {
		t.Fatal(err)
	}
	if got := data(t, whole, 10); got != ".xx..xxx.." {
		t.Errorf("of the whole is left %s", got)
	}
	base, err := pager.NewSparseFile(pages(t, dir, "base", "0120034500"))
	if err != nil {
		t.Fatal(err)
	}
	diff := pages(t, dir, "diff", "0100934507")
	if err := thin(t.Context(), diff, base); err != nil {
		t.Fatal(err)
	}
	// A page that became zero is a change as well.
	if got := data(t, diff, 10); got != "..x.x....x" {
		t.Errorf("of the difference is left %s", got)
	}
}

func TestFlattenAndCopy(t *testing.T) {
	dir := t.TempDir()
	var dirs []string
	for _, name := range []string{"new", "old"} {
		d := filepath.Join(dir, name)
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, d)
	}
	upper := pages(t, dirs[0], sandbox.FileMemory, "000900")
	if err := thin(t.Context(), upper, nil); err != nil {
		t.Fatal(err)
	}
	lower := pages(t, dirs[1], sandbox.FileMemory, "012340")
	img, err := microvm.OpenImage(sandbox.Image{Dirs: dirs}, 6*pager.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	flat := filepath.Join(dir, "flat")
	if err := flatten(t.Context(), img.Source, flat); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(pages(t, dir, "want", "012940").Name())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(flat); err != nil || string(got) != string(want) {
		t.Errorf("flattened to something else: %v", err)
	}
	if err := merge(t.Context(), []*os.File{upper}, filepath.Join(dir, "copy")); err != nil {
		t.Fatal(err)
	}
	c, err := os.Open(filepath.Join(dir, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := data(t, c, 6); got != "...x.." {
		t.Errorf("the copy has %s", got)
	}
	if _, err := microvm.OpenImage(sandbox.Image{Dirs: dirs}, 8*pager.PageSize); !errors.Is(err, microvm.ErrDamaged) {
		t.Errorf("an image of another size: %v", err)
	}
	if err := merge(t.Context(), []*os.File{lower, upper}, filepath.Join(dir, "merged")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "merged")); err != nil || string(got) != string(want) {
		t.Errorf("merged to something else: %v", err)
	}
}

// A restore that maps an image leaves it as it is, also its times: whoever
// keeps it would take it for damaged.
func TestMapLeavesImage(t *testing.T) {
	dir := t.TempDir()
	f := pages(t, dir, sandbox.FileMemory, "0120")
	image := sandbox.Image{Dirs: []string{dir}}
	img, err := microvm.OpenImage(image, 4*pager.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	j, err := newJail(t.TempDir(), "firecracker", "id", uint32(os.Getuid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o644, 0o600} {
		if err := f.Chmod(mode); err != nil {
			t.Fatal(err)
		}
		var was, is unix.Stat_t
		if err := unix.Stat(f.Name(), &was); err != nil {
			t.Fatal(err)
		}
		binds, err := new(Driver).mapMemory(t.Context(), &box{jail: j, image: img}, sandbox.Restore{Image: image})
		if err != nil || len(binds) != 1 || binds[0].source != f.Name() {
			t.Fatalf("mounts %v, %v", binds, err)
		}
		if err := j.targets(binds); (err == nil) != (mode == 0o644) {
			t.Errorf("a file of mode %v: %v", mode, err)
		}
		if err := unix.Stat(f.Name(), &is); err != nil || is.Ctim != was.Ctim || is.Mode != was.Mode {
			t.Errorf("mode %o, changed at %v; was %o, %v; %v", is.Mode, is.Ctim, was.Mode, was.Ctim, err)
		}
	}
}

func TestParseRelease(t *testing.T) {
	if _, err := parseRelease(pinned); err != nil {
		t.Error(err)
	}
	sum := strings.Repeat("a", 64)
	release := "version v1.2.3\nx86_64 " + sum + "\n"
	if r, err := parseRelease(release + "kernel linux-image-6.1.0-1-cloud-amd64 6.1.2-3 " + sum); err != nil || r.Kernel.Version != "6.1.2-3" {
		t.Errorf("parsed %+v, %v", r, err)
	}
	for _, bad := range []string{
		"", "version v1.2.3", "version v1.2.3\nx86_64 abc", "a b c", release, release + "kernel x y " + sum,
		release + "kernel linux-image-6.1.0-1-cloud-amd64 6.1.2-3 abc",
	} {
		if r, err := parseRelease(bad); err == nil {
			t.Errorf("%q gives %+v", bad, r)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"cache dir":    {CacheDir: "relative"},
		"firecracker":  {CacheDir: "/x", Firecracker: "/none/firecracker"},
		"not a progra": {CacheDir: "/x", Firecracker: "/etc/passwd"},
		"CPU template": {CacheDir: "/x", Firecracker: "/bin/true", Jailer: "/bin/true", CPUTemplate: "/none"},
		"is not JSON":  {CacheDir: "/x", Firecracker: "/bin/true", Jailer: "/bin/true", CPUTemplate: "/bin/true"},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestRestoreMode(t *testing.T) {
	one, two := []string{"a"}, []string{"a", "b"}
	for _, c := range []struct {
		conf Config
		r    sandbox.Restore
		want sandbox.RestoreMode // "": refused
	}{
		{Config{}, sandbox.Restore{}, ""},
		{Config{}, sandbox.Restore{Image: sandbox.Image{Dirs: one}}, sandbox.RestoreMap},
		{Config{}, sandbox.Restore{Image: sandbox.Image{Dirs: two}}, sandbox.RestorePager},
		{Config{}, sandbox.Restore{Image: sandbox.Image{Dirs: one, WorkingSet: "w"}}, sandbox.RestorePager},
		{Config{}, sandbox.Restore{Image: sandbox.Image{Dirs: one}, Record: true}, sandbox.RestorePager},
		{Config{HugePages: true}, sandbox.Restore{Image: sandbox.Image{Dirs: one}}, sandbox.RestorePager},
		{Config{HugePages: true}, sandbox.Restore{Image: sandbox.Image{Dirs: one}, Mode: sandbox.RestoreMap}, ""},
		{Config{}, sandbox.Restore{Image: sandbox.Image{Dirs: one}, Mode: sandbox.RestoreEager}, ""},
	} {
		d := &Driver{conf: c.conf}
		if c.want != "" && !slices.Contains(d.Capabilities().RestoreModes, c.want) {
			t.Errorf("%+v: the capabilities lack %q", c.conf, c.want)
		}
		if modes := d.Capabilities().RestoreModes; c.conf.HugePages && len(modes) != 1 {
			t.Errorf("with huge pages it promises to restore by %q", modes)
		}
		if got, err := d.restoreMode(c.r); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: %q, %v, want %q", c.r, got, err, c.want)
		}
	}
}
