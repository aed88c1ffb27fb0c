package sandboxtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/skep-dev/skep/internal/sandbox"
)

// writeDisk makes an EROFS image with one file.
func writeDisk(t *testing.T, path, name, content string) {
	t.Helper()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := erofs.Create(out)
	f, err := w.Create(name)
	if err == nil {
		_, err = f.Write([]byte(content))
		err = errors.Join(err, f.Chmod(0o644), f.Close())
	}
	if err := errors.Join(err, w.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
}

// testDisks mounts a disk in a sandbox that runs, and in one that was restored,
// and restores what has it mounted.
func testDisks(t *testing.T, s *suite) {
	if !s.driver.Capabilities().Disks {
		t.Skip("not capable of disks") // runc: its capabilities say so
	}
	disk := filepath.Join(s.dir, "disk.erofs")
	writeDisk(t, disk, "/hello", "from the disk")
	spare := filepath.Join(s.dir, "spare.erofs") // a disk that no snapshot has mounted
	writeDisk(t, spare, "/spare", "old")
	give := func(spec *sandbox.Spec) { spec.Disks = []string{disk, spare} }
	reads := func(b *box) {
		t.Helper()
		var got string
		if b.get(t, "/read", &got, "path", "/srv/hello"); got != "from the disk" {
			t.Errorf("sandbox %s reads %q from the disk", b.spec.Hostname, got)
		}
	}
	mount := func(b *box) {
		t.Helper()
		if err := b.sb.(sandbox.Mounter).Mount(s.ctx(t), 0, "/srv"); err != nil {
			t.Fatalf("Mount: %v", err)
		}
		reads(b)
	}
	booted := s.serve(t, give)
	if err := booted.sb.(sandbox.Mounter).Mount(s.ctx(t), 2, "/srv"); err == nil {
		t.Error("a disk that is not there was mounted")
	}
	if !s.driver.Capabilities().Snapshot {
		mount(booted)
		return
	}
	sn := &snapshots{suite: s, base: booted}
	image := sandbox.Image{Dirs: []string{sn.save(t, booted, false)}}
	mount(booted)
	restored := func(name string, change func(*sandbox.Spec)) *box {
		t.Helper()
		b := s.prepare(t, false, func(spec *sandbox.Spec) {
			spec.Hostname = name
			change(spec)
		})
		b.restore = &sandbox.Restore{Image: image}
		return b
	}
	if s.driver.Capabilities().BlockDevices {
		other := filepath.Join(s.dir, "other.erofs")
		testOtherDisk(t, other, restored("other-disk", func(spec *sandbox.Spec) { spec.Disks = []string{other, spare} }))
	}
	b := restored("mounts", give)
	b.create(t)
	b.start(t)
	mount(b)
	layered := s.driver.Capabilities().LayeredSnapshot
	next := sn.save(t, b, layered)
	reads(b)
	b.destroy(t)
	if image.Dirs = append([]string{next}, image.Dirs...); !layered {
		image.Dirs = image.Dirs[:1]
	}
	for _, mode := range s.driver.Capabilities().RestoreModes {
		b := restored("has-it", give)
		b.restore.Mode = mode
		b.create(t)
		b.start(t)
		reads(b)
	}
	// What is mounted may be elsewhere, but must be the same image; other disks
	// may be others.
	moved := filepath.Join(s.dir, "moved.erofs")
	if err := errors.Join(os.Rename(disk, moved), os.Chtimes(moved, time.Now(), time.Now())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(moved) })
	writeDisk(t, spare, "/spare", "new and longer")
	b = restored("moved", func(spec *sandbox.Spec) { spec.Disks = []string{moved, spare} })
	b.create(t)
	b.start(t)
	reads(b)
	if err := b.sb.(sandbox.Mounter).Mount(s.ctx(t), 1, "/tmp"); err != nil {
		t.Fatalf("Mount: %v", err)
	}
	var got string
	if b.get(t, "/read", &got, "path", "/tmp/spare"); got != "new and longer" {
		t.Errorf("the guest reads %q from a disk that was not mounted and is another one", got)
	}
	writeDisk(t, disk, "/hello", "from THE disk")
	other := restored("has-another", give)
	if sb, err := other.make(s.ctx(t)); !errors.Is(err, sandbox.ErrOtherDisk) {
		other.sb = sb
		t.Errorf("with another image of the disk that is mounted: %v, want %v", err, sandbox.ErrOtherDisk)
	}
	none := restored("has-none", func(*sandbox.Spec) {})
	sb, err := none.make(s.ctx(t))
	if err == nil {
		none.sb = sb
		if err = sb.Start(s.ctx(t)); err == nil {
			t.Error("a snapshot was restored without the disk that is mounted in it")
		}
	}
}

// testOtherDisk restores a sandbox that has not mounted its disk with another
// one, which is larger, and reads that to its end.
func testOtherDisk(t *testing.T, path string, b *box) {
	const size = 1 << 20
	writeDisk(t, path, "/hello", strings.Repeat("another!", size/8))
	b.create(t)
	b.start(t)
	if err := b.sb.(sandbox.Mounter).Mount(b.s.ctx(t), 0, "/srv"); err != nil {
		t.Fatalf("Mount of another disk than the one that was saved: %v", err)
	}
	var n int
	var got string
	if b.get(t, "/length", &n, "path", "/srv/hello"); n != size {
		t.Errorf("the other disk's file has %d bytes, want %d", n, size)
	}
	if b.get(t, "/read", &got, "path", "/srv/hello"); strings.Trim(got, "another!") != "" || len(got) != size {
		t.Errorf("the other disk's file has %d bytes of something else", len(got))
	}
	b.destroy(t)
}
