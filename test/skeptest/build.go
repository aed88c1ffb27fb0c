package skeptest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	version, err := goTool(ctx, root, "list", "-m", "-f", "{{.Version}}", "gvisor.dev/gvisor")
	if err != nil {
		return "", err
	}
	agent := filepath.Join(root, "internal", "agent", "guestbin", "skep-agent")
	if _, err := goTool(ctx, root, "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "./cmd/skep-agent"); err != nil {
		return "", err
	}
	_, err = goTool(ctx, root, "build", "-ldflags", "-s -w -X gvisor.dev/gvisor/runsc/version.version="+version, "-o", out, "./cmd/skep")
	return out, err
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
