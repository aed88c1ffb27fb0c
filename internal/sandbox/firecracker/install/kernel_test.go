package install

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

func TestDescribePackage(t *testing.T) {
	testenv.Tool(t, "dpkg-deb", "dpkg")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tree/DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	const control = "Package: a-kernel\nVersion: 6.1.2-3\nArchitecture: amd64\nMaintainer: nobody <n@example.com>\nDescription: none\n"
	if err := os.WriteFile(filepath.Join(dir, "tree/DEBIAN/control"), []byte(control), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := tool(t.Context(), dir, "dpkg-deb", "-b", "tree", "a.deb"); err != nil {
		t.Fatal(err)
	}
	k, err := describePackage(t.Context(), filepath.Join(dir, "a.deb"))
	if err != nil || k.Name != "a-kernel" || k.Version != "6.1.2-3" || len(k.SHA256) != 64 {
		t.Errorf("described as %+v, %v", k, err)
	}
}

func TestImagePackage(t *testing.T) {
	out := "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-40-cloud-amd64\n    linux-image-6.1.0-40-cloud-amd64-unsigned\n"
	if p, err := imagePackage(out); err != nil || p != "linux-image-6.1.0-40-cloud-amd64" {
		t.Errorf("package %q, %v", p, err)
	}
	for _, bad := range []string{"", "N: Unable to locate package", "  Depends: linux-image-x/../../y-cloud-amd64"} {
		if p, err := imagePackage(bad); err == nil {
			t.Errorf("%q gives %q", bad, p)
		}
	}
}
