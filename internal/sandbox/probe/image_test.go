package probe

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

func TestExecutable(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		b, err := executable(arch)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if f.Machine != machine || len(f.Progs) != 1 || len(b) != blockSize {
			t.Errorf("%s: %+v, %d bytes", arch, f.FileHeader, len(b))
		}
	}
	if _, err := executable("pdp11"); err == nil {
		t.Error("no error for an unknown machine")
	}
}

func TestExecutableRuns(t *testing.T) {
	b, err := executable(runtime.GOARCH)
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "probe")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := exec.Command(path).Run(); !errors.As(err, &exit) || exit.ExitCode() != ExitCode {
		t.Errorf("it ended with %v, want exit status %d", err, ExitCode)
	}
}

func TestWriteImageKeepsFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := WriteImage(path); err != nil {
		t.Fatal(err)
	}
	if err := WriteImage(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second image in the same place: %v", err)
	}
}
