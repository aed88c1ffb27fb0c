package build

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// cacheDir is where the bases of tests are kept from run to run, as making one
// takes up to a minute: skep-test/build below the user's cache folder.
func cacheDir(t testing.TB) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "skep-test", "build")
}

// mustBuild builds an image that is closed when the test ends.
func mustBuild(t testing.TB, o Options) *Image {
	t.Helper()
	img, err := tryBuild(t, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Errorf("close image: %v", err)
		}
	})
	return img
}

func tryBuild(t testing.TB, o Options) (*Image, error) {
	t.Helper()
	if o.CacheDir == "" {
		o.CacheDir = cacheDir(t)
	}
	o.Progress = func(s string) { t.Log(s) }
	o.Log = testLog{t}
	return Build(context.Background(), o)
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("| %s", b)
	return len(b), nil
}

// folder makes a source folder of the given files.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := writeFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
