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

// profile runs fn while perf samples the whole machine 1999 times a second and
// processor, and returns what took the time, by program and by function. perf's
// own file stays in dir:
//
//	perf report -i DIR/NAME.perf --no-children
func profile(ctx context.Context, dir, name string, fn func()) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name+".perf")
	if err := record(ctx, path, fn); err != nil {
		return "", fmt.Errorf("perf (package linux-perf): %w", err)
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

// record runs fn once perf says that it samples.
func record(ctx context.Context, path string, fn func()) (err error) {
	orders, ordersW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ordersW.Close()
	answers, answersW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, orders.Close())
	}
	defer answers.Close()
	perf := exec.CommandContext(ctx, "perf", "record", "-q", "-a", "-g", "-F", "1999", "-e", "cpu-clock", "-D", "-1", "--control", "fd:3,4", "-o", path)
	perf.Stderr = os.Stderr
	perf.ExtraFiles = []*os.File{orders, answersW}
	err = errors.Join(perf.Start(), orders.Close(), answersW.Close())
	if err != nil {
		return err
	}
	order := func(what string) error {
		if _, err := ordersW.WriteString(what + "\n"); err != nil {
			return err
		}
		answer := make([]byte, 16)
		if n, err := answers.Read(answer); err != nil || !strings.HasPrefix(string(answer[:n]), "ack") {
			return fmt.Errorf("perf answers %q to %s: %w", answer[:n], what, err)
		}
		return nil
	}
	if err = order("enable"); err == nil {
		fn()
		err = order("disable")
	}
	_ = perf.Process.Signal(syscall.SIGINT)
	var exit *exec.ExitError
	if waited := perf.Wait(); waited != nil && !errors.As(waited, &exit) { // the signal may be its result
		err = errors.Join(err, waited)
	}
	return err
}
