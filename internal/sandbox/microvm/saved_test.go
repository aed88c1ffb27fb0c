package microvm

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/fingerprint"
	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/sandbox"
)

// describe has a box describe itself, with a root file system and one disk.
func describe(t *testing.T, dir string) Saved {
	t.Helper()
	var infos []os.FileInfo
	paths := []string{filepath.Join(dir, "root"), filepath.Join(dir, "disk")}
	for _, p := range paths {
		i, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, i)
	}
	b := New("test", &sandbox.Spec{
		ID: sandbox.NewID(), Disks: paths[1:],
		Link: sandbox.Link{MAC: net.HardwareAddr{6, 0, 0, 0, 0, 1}, Address: net.IPNet{IP: net.IPv4(10, 0, 0, 2), Mask: net.CIDRMask(30, 32)}},
	})
	return b.Describe(128, infos[0], infos[1:])
}

func TestSaved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"root", "disk"} {
		if err := WriteFile(filepath.Join(dir, name), []byte("content")); err != nil {
			t.Fatal(err)
		}
	}
	was := describe(t, dir)
	if err := was.Check(); !errors.Is(err, ErrDamaged) {
		t.Errorf("without a token: %v", err)
	}
	was.Token = make([]byte, 32)
	if err := was.Check(); err != nil {
		t.Error(err)
	}
	now := describe(t, dir)
	if err := was.Fits(&now); err != nil {
		t.Errorf("it does not fit itself: %v", err)
	}
	if err := was.Fits(&now, Trait{"colour", "red", "blue"}); err == nil || !strings.Contains(err.Error(), "colour was red and is blue") {
		t.Errorf("the driver's own: %v", err)
	}
	if err := os.Truncate(filepath.Join(dir, "root"), 1); err != nil {
		t.Fatal(err)
	}
	now = describe(t, dir)
	if err := was.Fits(&now); err == nil || !strings.Contains(err.Error(), "root file system") {
		t.Errorf("another root: %v", err)
	}
	if err := WriteFile(filepath.Join(dir, "root"), nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file that is there: %v", err)
	}
}

func TestNewDisks(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	describe := func(b *Box, path string) Saved {
		b.Spec.Disks = []string{path}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return b.Describe(128, st, []os.FileInfo{st})
	}
	app := write("app", "content")
	box := New("test", &sandbox.Spec{ID: sandbox.NewID()})
	loose := describe(box, app)
	content, err := fingerprint.File(app)
	if err != nil {
		t.Fatal(err)
	}
	box.mounts[0] = mountedDisk{"/srv", content}
	mounted := describe(box, app)
	// A machine that was restored from it has it mounted, too.
	restored := New("test", &sandbox.Spec{ID: sandbox.NewID()})
	restored.Origin = &Origin{Saved: &mounted}
	again := describe(restored, write("copy", "content"))

	for _, test := range []struct {
		name    string
		was     Saved
		path    string
		renewed bool
		other   bool
	}{
		{"itself", loose, app, false, false},
		{"copied", loose, write("copy", "content"), true, false},
		{"another", loose, write("other", "CONTENT"), true, false},
		{"mounted, itself", mounted, app, false, false},
		{"mounted, copied", mounted, write("copy", "content"), false, false},
		{"mounted, another of the same size", mounted, write("other", "CONTENT"), false, true},
		{"mounted, longer", mounted, write("longer", "content and more"), false, true},
		{"mounted in what was restored", again, app, false, false},
		{"mounted in what was restored, another", again, write("other", "CONTENT"), false, true},
	} {
		now := describe(New("test", &sandbox.Spec{ID: sandbox.NewID()}), test.path)
		renewed, err := test.was.NewDisks(&now)
		if renewed != test.renewed || errors.Is(err, sandbox.ErrOtherDisk) != test.other || (err != nil) != test.other {
			t.Errorf("%s: %t, %v", test.name, renewed, err)
		}
		if test.other && !strings.Contains(err.Error(), test.path+" is not the image that the snapshot has at /srv") {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestOpenImage(t *testing.T) {
	var i sandbox.Image
	page := strings.Repeat("x", pager.PageSize)
	for _, content := range []string{"\x00" + page[1:], page + page} { // the second is the base
		dir := t.TempDir()
		i.Dirs = append(i.Dirs, dir)
		path := filepath.Join(dir, sandbox.FileMemory)
		if err := errors.Join(os.WriteFile(path, []byte(content), 0o600), os.Truncate(path, 2*pager.PageSize)); err != nil {
			t.Fatal(err)
		}
	}
	img, err := OpenImage(i, 2*pager.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2*pager.PageSize)
	if _, err := img.Source.ReadAt(b, 0); err != nil || string(b) != "\x00"+page[1:]+page {
		t.Errorf("the layers read as something else: %v", err)
	}
	if err := errors.Join(img.Close(), img.Close()); err != nil {
		t.Error(err)
	}
	if _, err := OpenImage(i, 4*pager.PageSize); !errors.Is(err, ErrDamaged) {
		t.Errorf("of another size: %v", err)
	}
}
