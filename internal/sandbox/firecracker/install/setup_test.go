package install_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/sandbox/firecracker/install"
)

// wants makes the archive of a release, on disk, and what installs it.
func wants(t *testing.T, dir string) (p install.Programs, archive string) {
	t.Helper()
	a := good(t)
	archive = filepath.Join(t.TempDir(), "a.tgz")
	if err := os.WriteFile(archive, a, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(a)
	r := release
	r.SHA256 = hex.EncodeToString(sum[:])
	return install.Programs{Release: r, Dir: dir, Arch: "amd64"}, archive
}

// From nothing to a new pin, as skep setup goes through it.
func TestSetUp(t *testing.T) {
	dir := t.TempDir()
	p, archive := wants(t, dir)
	s := httptest.NewServer(nil)
	p.URL = s.URL
	s.Close() // nobody listens there any more

	says := func(p install.Programs, force bool, want ...string) {
		t.Helper()
		var out bytes.Buffer
		err := p.SetUp(t.Context(), &out, force)
		text := out.String()
		if err != nil {
			text += err.Error()
		}
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("it says %q, not %q", text, w)
			}
		}
	}
	// Without a way to the internet it says what to place where.
	says(p, false, "could not be set up", p.Release.URL(), p.Release.SHA256, "--archive firecracker-v1.2.3-x86_64.tgz",
		"release-v1.2.3-x86_64/firecracker-v1.2.3-x86_64  ->  "+filepath.Join(dir, "firecracker"),
		"release-v1.2.3-x86_64/jailer-v1.2.3-x86_64  ->  "+filepath.Join(dir, "jailer"))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("a failure left %v, %v", left, err)
	}
	given := p
	given.Archive = archive
	says(given, false, "firecracker, jailer: v1.2.3, in "+dir)
	says(p, false, "v1.2.3, in "+dir+" already")
	if st := p.Status(); !st.Current || st.String() != "v1.2.3" {
		t.Errorf("status %+v", st)
	}

	// A new pin: what an earlier one installed is replaced.
	next := p
	next.Release.Version = "v1.2.4"
	if next.Status().Current {
		t.Error("the programs of another release are current")
	}
	says(next, false, "could not be set up")
	old := given
	old.Release.Version = "v1.2.3"
	says(old, true, "v1.2.3, in ")

	// What somebody else put there stays.
	if err := os.WriteFile(filepath.Join(dir, "jailer"), []byte("mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	says(p, false, "not as v1.2.3 was installed: jailer", "--force")
	if err := os.Remove(filepath.Join(dir, "firecracker.release")); err != nil {
		t.Fatal(err)
	}
	says(p, false, "by hand", "--force")
	says(p, true, "could not be set up")
	if b, err := os.ReadFile(filepath.Join(dir, "jailer")); err != nil || string(b) != "mine" {
		t.Errorf("the jailer that was there is %q, %v", b, err)
	}
	says(given, false, "v1.2.3, in ")

	arm := given
	arm.Arch, arm.Dir = "arm64", filepath.Join(dir, "arm")
	if err := arm.SetUp(t.Context(), &bytes.Buffer{}, true); !errors.Is(err, install.ErrArch) {
		t.Errorf("on arm64: %v", err)
	}
	if _, err := os.Stat(arm.Dir); err == nil {
		t.Error("on arm64 something was installed")
	}
}
