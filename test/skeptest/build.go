package skeptest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Build builds skep into a file, as the Makefile does, unless SKEP_BINARY in
// the environment names one. It returns the binary's path.
func Build(ctx context.Context, out string) (string, error) {
	if b := os.Getenv("SKEP_BINARY"); b != "" {
		return filepath.Abs(b)
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	if err := embedded(ctx, root); err != nil {
		return "", err
	}
	version, err := goTool(ctx, root, "list", "-m", "-f", "{{.Version}}", "gvisor.dev/gvisor")
	if err != nil {
		return "", err
	}
	_, err = goTool(ctx, root, "build", "-ldflags", "-s -w -X gvisor.dev/gvisor/runsc/version.version="+version, "-o", out, "./cmd/skep")
	return out, err
}

// embedded makes the programs that skep embeds. Several packages of tests may
// want to at the same time.
func embedded(ctx context.Context, root string) error {
	lock, err := os.Open(filepath.Join(root, "Makefile"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	cmd := exec.CommandContext(ctx, "make", "--no-print-directory", "-C", root, "embedded")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make embedded: %w\n%s", err, out)
	}
	return nil
}

func goTool(ctx context.Context, root string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
