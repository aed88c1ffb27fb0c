package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// profile runs fn while perf samples the whole machine 499 times a second and
// processor, and returns what took the time, by program and by function. perf's
// own file stays in dir:
//
//	perf report -i DIR/NAME.perf --no-children
func profile(ctx context.Context, dir, name string, fn func() error) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name+".perf")
	record := exec.CommandContext(ctx, "perf", "record", "-q", "-a", "-g", "-F", "499", "-e", "cpu-clock", "-o", path)
	record.Stderr = os.Stderr
	if err := record.Start(); err != nil {
		return "", fmt.Errorf("perf (package linux-perf): %w", err)
	}
	err := fn()
	_ = record.Process.Signal(syscall.SIGINT)
	var exit *exec.ExitError
	if waited := record.Wait(); waited != nil && !errors.As(waited, &exit) { // the signal may be its result
		err = errors.Join(err, fmt.Errorf("perf record: %w", waited))
	}
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, by := range []struct {
		key  string
		most int
	}{{"comm", 8}, {"comm,sym", 25}} {
		cmd := exec.CommandContext(ctx, "perf", "report", "-i", path, "--no-children", "-g", "none", "--stdio", "-s", by.key, "--percent-limit", "0.7")
		text, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("perf report: %w", err)
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' && n < by.most {
				out.WriteString(line + "\n")
				n++
			}
		}
		out.WriteString("\n")
	}
	return strings.TrimSpace(out.String()), nil
}
