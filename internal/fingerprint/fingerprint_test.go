package fingerprint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFile(t *testing.T) {
	const mib = 1 << 20
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	long := strings.Repeat("a", 2*mib)
	seen := map[string]int{}
	for i, content := range []string{
		"", "a", "b", long[:mib], long[:mib-1] + "b", long, long[:mib-1],
		long[:begin-1] + "b" + long[begin:], // the last byte that is read in any case
		long[:2*mib-1] + "b",                // the last sample
		long[:mib/2] + "b" + long[mib/2+1:mib],
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := File(path)
		if other, ok := seen[f]; err != nil || ok {
			t.Errorf("%d, %d bytes: %s as of %d, %v", i, len(content), f, other, err)
		}
		seen[f] = i
	}
	// The same elsewhere, and newer.
	was, err := File(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"2", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if now, err := File(path + "2"); err != nil || now != was {
		t.Errorf("a copy: %s, %v, want %s", now, err, was)
	}
	for _, bad := range []string{dir, filepath.Join(dir, "none")} {
		if _, err := File(bad); err == nil {
			t.Errorf("%s has a fingerprint", bad)
		}
	}
}
