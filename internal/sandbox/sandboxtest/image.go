package sandboxtest

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"

	"github.com/skep-dev/skep/internal/testenv"
)

// Users of the guest's image.
const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/guest\n"
	group  = "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\naudio:x:29:\n"
)

// buildImage makes an EROFS image with the guest program as /guest and
// /usr/bin/guest.
func buildImage(t testing.TB, path string) {
	t.Helper()
	bin := testenv.Program(t, "github.com/skep-dev/skep/internal/sandbox/sandboxtest/guest")
	if err := writeImage(path, bin); err != nil {
		t.Fatalf("make the guest's image: %v", err)
	}
}

func writeImage(path, guest string) (err error) {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	src, err := os.Open(guest)
	if err != nil {
		return err
	}
	defer src.Close()

	w := erofs.Create(out)
	for _, dir := range []string{"/etc", "/proc", "/sys", "/dev", "/usr", "/usr/bin", "/home", "/home/alice", "/root", "/srv"} {
		if err := w.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := w.Chown("/home/alice", 1000, 1000); err != nil {
		return err
	}
	file := func(name string, mode os.FileMode, r io.Reader) error {
		f, err := w.Create(name)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, r); err != nil {
			return errors.Join(err, f.Close())
		}
		return errors.Join(f.Chmod(mode), f.Close())
	}
	if err := file("/guest", 0o755, src); err != nil {
		return err
	}
	if err := w.Symlink("/guest", "/usr/bin/guest"); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"/etc/passwd": passwd, "/etc/group": group, "/srv/data": "from the image", "/srv/noexec": "not a program",
		"/etc/machine-id": "", // offers a place for one, as images of distributions do
	} {
		if err := file(name, 0o644, strings.NewReader(content)); err != nil {
			return err
		}
	}
	return w.Close()
}
