package runc

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox/probe"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestParseLog(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "",
		"garbage":                             "",
		`{"level":"warning","msg":"careful"}`: "",
		`{"level":"error","msg":"exec: \"/app\": no such file"}` + "\n":                                              `exec: "/app": no such file`,
		`{"level":"error","msg":"one"}` + "\n{}\n[1]\n" + `{"level":"fatal","msg":" two "}` + "\n" + `{"level":"err`: "two",
	} {
		if got := parseLog([]byte(text)); got != want {
			t.Errorf("parseLog(%q) = %q, want %q", text, got, want)
		}
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"one"}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if got := parseLog(text); len(got) > 3*len(text) {
			t.Errorf("%d bytes from %d", len(got), len(text))
		}
	})
}

func TestExitCode(t *testing.T) {
	for status, want := range map[int][2]int{0: {0, 0}, 1: {1, 0}, 128: {128, 0}, 137: {137, 9}, 143: {143, 15}, 192: {192, 64}, 193: {193, 0}, 255: {255, 0}} {
		if code, signal := exitCode(status); code != want[0] || signal != want[1] {
			t.Errorf("exitCode(%d) = %d, %d; want %v", status, code, signal, want)
		}
	}
}

// TestLoop mounts as kernels before 6.12 need it.
func TestLoop(t *testing.T) {
	testenv.Root(t)
	testenv.File(t, "/dev/loop-control", "modprobe loop")
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := probe.WriteImage(image); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	var device string
	if err := withLoop(image, func(d string) error {
		device = d
		return unix.Mount(d, mnt, "erofs", unix.MS_RDONLY, "")
	}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(mnt, "probe")).CombinedOutput(); err == nil || err.Error() != "exit status 42" {
		t.Errorf("the probe's program: %s, %v", out, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for range 2 {
		if err := unmountAll(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	backing := filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file")
	if err := poll(ctx, func() (bool, error) {
		b, err := os.ReadFile(backing)
		if err != nil {
			return true, nil //nolint:nilerr // the file is there only while something is attached
		}
		return string(bytes.TrimSpace(b)) != image, nil
	}); err != nil {
		t.Errorf("%s is still attached to %s", device, image)
	}
	// Where the mount fails, nothing stays attached either.
	if err := withLoop(image, func(d string) error { device = d; return unix.EINVAL }); err == nil {
		t.Error("an error was lost")
	}
}
