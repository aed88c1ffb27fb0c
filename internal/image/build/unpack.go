package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// maxUnpacked bounds what a base may unpack to, in bytes.
const maxUnpacked = 8 << 30

// merged are the folders of / that are symbolic links into /usr. Packages still
// name files below both.
var merged = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// unpackTree unpacks the tar of a Debian root folder below dir, leaving out what
// keep says no to. Owners, devices, extended attributes and set-user-ID bits do
// not come along; /bin and its like become links into /usr.
func unpackTree(ctx context.Context, r io.Reader, dir string, keep func(h *tar.Header) bool) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacker{root: root, modes: map[string]fs.FileMode{}}
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		h.Name = mergedName(h.Name)
		if h.Typeflag == tar.TypeLink {
			h.Linkname = mergedName(h.Linkname)
		}
		if h.Name == "" || slices.Contains(merged, h.Name) || !keep(h) {
			continue
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
	for _, m := range merged {
		if _, err := root.Lstat("usr/" + m); err != nil {
			continue
		}
		if err := root.Symlink("usr/"+m, m); err != nil {
			return fmt.Errorf("link /%s: %w", m, err)
		}
	}
	return u.applyModes()
}

// mergedName is name without leading slashes and dots, moved into /usr where
// that is its real place; "" for the root itself.
func mergedName(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if first, rest, ok := strings.Cut(name, "/"); ok && slices.Contains(merged, first) {
		return "usr/" + first + "/" + rest
	}
	return name
}

type unpacker struct {
	root  *os.Root
	modes map[string]fs.FileMode // of folders, set last: one may be closed to us
	total int64
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	mode := fs.FileMode(h.Mode).Perm()
	if h.Typeflag == tar.TypeDir {
		if h.Mode&0o1000 != 0 {
			mode |= fs.ModeSticky
		}
		u.modes[h.Name] = mode
		return u.root.MkdirAll(h.Name, 0o755)
	}
	if err := u.root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if u.total += h.Size; u.total > maxUnpacked {
			return fmt.Errorf("base is larger than %d bytes", int64(maxUnpacked))
		}
		f, err := u.root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Chmod(mode), f.Close())
	case tar.TypeSymlink:
		return u.root.Symlink(h.Linkname, h.Name)
	case tar.TypeLink:
		return u.root.Link(h.Linkname, h.Name)
	}
	return nil // devices, fifos: the sandbox has its own
}

func (u *unpacker) applyModes() error {
	names := make([]string, 0, len(u.modes))
	for n := range u.modes {
		names = append(names, n)
	}
	slices.Sort(names)
	slices.Reverse(names) // children first
	for _, n := range names {
		if err := u.root.Chmod(n, u.modes[n]); err != nil {
			return err
		}
	}
	return nil
}

// removeTree is os.RemoveAll that also gets rid of folders closed to us (the Go
// module cache and packages make such).
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(p, 0o700)
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(dir))
}
