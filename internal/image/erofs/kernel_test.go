package erofs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:8])
}

func runTool(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// TestKernelMount compares the tree that the kernel shows with the one that
// tar unpacks.
func TestKernelMount(t *testing.T) {
	testenv.Root(t)
	tarTool := testenv.Tool(t, "tar", "tar")
	layer := archive(t, everything()...)
	got := listing(t, mount(t, mustFlatten(t, layer)))

	work := t.TempDir()
	want := filepath.Join(work, "want")
	layerFile := filepath.Join(work, "layer.tar")
	if err := os.WriteFile(layerFile, layer, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(want, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := runTool(t, tarTool, "--xattrs", "--xattrs-include=*", "--numeric-owner", "--delay-directory-restore", "-xpf", layerFile, "-C", want); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	diff(t, got, listing(t, want))
}

func TestStrippedVariant(t *testing.T) {
	testenv.Root(t)
	work := t.TempDir()
	full, err := os.Create(filepath.Join(work, "full"))
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	stripped, err := os.Create(filepath.Join(work, "stripped"))
	if err != nil {
		t.Fatal(err)
	}
	defer stripped.Close()
	b := NewBuilder(full, Options{})
	if err := b.AddLayer(t.Context(), strings.NewReader(string(archive(t, everything()...)))); err != nil {
		t.Fatal(err)
	}
	res, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !res.HasXattrs {
		t.Error("HasXattrs = false")
	}
	if _, err := b.WriteStripped(t.Context(), stripped); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, line := range listing(t, mount(t, full.Name())) {
		for _, cut := range []string{" security.", " user.", " trusted."} {
			line, _, _ = strings.Cut(line, cut)
		}
		want = append(want, line)
	}
	diff(t, listing(t, mount(t, stripped.Name())), want)
}

func TestFsck(t *testing.T) {
	fsck := testenv.Tool(t, "fsck.erofs", "erofs-utils")
	image := mustFlatten(t, archive(t, everything()...), archive(t, whiteout("etc/.wh.passwd"), file("many", "now a file")))
	if out, err := runTool(t, fsck, image); err != nil {
		t.Errorf("fsck.erofs: %v: %s", err, out)
	}
}
