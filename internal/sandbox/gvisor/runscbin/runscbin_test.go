package runscbin

import (
	"os"
	"path/filepath"
	"testing"
)

func TestExtract(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runsc")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "skep-runsc-of-another-version")
	if err := os.WriteFile(old, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	path, err := Extract(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, embedded := files.ReadFile("skep-runsc.gz"); embedded != nil {
		if path != "" {
			t.Fatalf("nothing is embedded, yet Extract returned %s", path)
		}
		return // a build without make
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o755 || info.Size() < 1<<20 {
		t.Fatalf("extracted file: %v, %v", info, err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("another version's program is still there: %v", err)
	}
	again, err := Extract(dir)
	if err != nil || again != path {
		t.Fatalf("second Extract: %s, %v", again, err)
	}
	if now, err := os.Stat(path); err != nil || !now.ModTime().Equal(info.ModTime()) {
		t.Errorf("the program was extracted again: %v", err)
	}
}
