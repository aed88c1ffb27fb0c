package e2e

import (
	"bufio"
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestLogsFollow: lines come as they are printed, also those of instances that
// start later.
func TestLogsFollow(t *testing.T) {
	t.Parallel()
	s := shared(t)
	name := s.deploy("logs")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--data-dir", s.Dir, "logs", "-f", "--timestamps", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for i := range 2 {
		// It dies of hunger, and the next request starts another.
		_, _ = s.do("POST", name, "/oom", nil)
		if !lines.Scan() || !strings.HasSuffix(lines.Text(), " stdout taking memory") {
			t.Fatalf("line %d: %q, error %v", i, lines.Text(), lines.Err())
		}
		eventually(t, "an instance", func() string {
			r, err := s.do("GET", name, "/", nil)
			if err != nil || r.StatusCode != 200 {
				return r.body
			}
			return ""
		})
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // to the end
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("logs -f at SIGINT: %v", err)
	}
	if tail := s.ok("logs", name, "--tail", "1"); tail != "taking memory\n" {
		t.Errorf("logs --tail 1: %q", tail)
	}
}
