package erofs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/image/erofs/erofstest"
	"github.com/skep-dev/skep/internal/testenv"
)

// Shorthands of the package that makes layers.
type entry = erofstest.Entry

var (
	dir        = erofstest.Dir
	file       = erofstest.File
	symlink    = erofstest.Symlink
	hardlink   = erofstest.HardLink
	whiteout   = erofstest.Whiteout
	archive    = erofstest.Archive
	everything = erofstest.Everything
	readTree   = erofstest.ReadTree
)

func flatten(ctx context.Context, path string, o Options, layers ...[]byte) (Result, error) {
	f, err := os.Create(path)
	if err != nil {
		return Result{}, err
	}
	defer f.Close()
	b := NewBuilder(f, o)
	for _, l := range layers {
		if err := b.AddLayer(ctx, bytes.NewReader(l)); err != nil {
			return Result{}, err
		}
	}
	return b.Finish(ctx)
}

func mustFlatten(t testing.TB, layers ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	res, err := flatten(t.Context(), path, Options{}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Size() != res.Size || res.Size%BlockSize != 0 {
		t.Fatalf("size of %s: %v, %v, want %d", path, st.Size(), err, res.Size)
	}
	return path
}

// mount mounts an image with the kernel, as root.
func mount(t testing.TB, image string) string {
	t.Helper()
	testenv.Root(t)
	at := t.TempDir()
	// Kernels before 6.12 do not mount a file without a loop device.
	out, err := runTool(t, "mount", "-t", "erofs", "-o", "ro", image, at)
	if err != nil {
		out, err = runTool(t, "mount", "-t", "erofs", "-o", "ro,loop", image, at)
	}
	if err != nil {
		t.Fatalf("mounting: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmounting %s: %v", at, err)
		}
	})
	return at
}

// listing describes a tree, one line a file.
func listing(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s mode=%o own=%d:%d nlink=%d", rel, st.Mode, st.Uid, st.Gid, st.Nlink)
		if rel != "." {
			line += fmt.Sprintf(" mtime=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" data=%d:%s", len(data), sum(data))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev=%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))) //nolint:unconvert // other machines have 32 bits here
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first := inodes[st.Ino]; first != "" {
				line += " same as " + first
			} else {
				inodes[st.Ino] = rel
			}
		}
		line += xattrListing(t, path)
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return lines
}

func xattrListing(t testing.TB, path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("listxattr %s: %v", path, err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	sort.Strings(names)
	line := ""
	for _, name := range names {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("getxattr %s %s: %v", path, name, err)
		}
		line += fmt.Sprintf(" %s=%x", name, value[:n])
	}
	return line
}

func diff(t testing.TB, got, want []string) {
	t.Helper()
	in := func(all []string, s string) bool {
		i := sort.SearchStrings(all, s)
		return i < len(all) && all[i] == s
	}
	shown := 0
	for _, w := range want {
		if !in(got, w) && shown < 20 {
			t.Errorf("missing: %.300s", w)
			shown++
		}
	}
	for _, g := range got {
		if !in(want, g) && shown < 40 {
			t.Errorf("unexpected: %.300s", g)
			shown++
		}
	}
}
