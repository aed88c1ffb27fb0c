package local

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/snapshot/backend"
	"github.com/skep-dev/skep/internal/snapshot/backend/backendtest"
)

func TestConformance(t *testing.T) {
	for name, opts := range map[string]Options{
		"nameless": {NoSync: true}, "named": {NoSync: true, NamedTemp: true},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backend.Backend {
				dir := t.TempDir()
				b, err := Open(dir, opts)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if left, _ := os.ReadDir(filepath.Join(dir, tmpDir)); len(left) != 0 {
						t.Errorf("%d temporary files are left", len(left))
					}
				})
				return b
			})
		})
	}
}

func TestOpenRemovesHalfWritten(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	old, fresh := filepath.Join(dir, tmpDir, "put-old"), filepath.Join(dir, tmpDir, "put-new")
	for _, f := range []string{old, fresh} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("the old half-written file is still there: %v", err)
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Errorf("the fresh one went: %v", err)
	}
}
