package main

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestAlive(t *testing.T) {
	for name, test := range map[string]struct {
		cmd   *exec.Cmd
		quiet time.Duration
		hung  bool
	}{
		"spins": {exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done"), 100 * time.Millisecond, true},
		"idles": {exec.CommandContext(t.Context(), "sleep", "1000"), 100 * time.Millisecond, true},
		"ends":  {exec.CommandContext(t.Context(), "true"), time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := test.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			a := watchAlive(test.cmd.Process, test.quiet)
			_ = test.cmd.Wait()
			if hung := a.end(); hung != test.hung {
				t.Errorf("hung: %v", hung)
			}
		})
	}
	if cpuTime(os.Getpid()) < 0 || cpuTime(-1) != 0 {
		t.Error("cpuTime")
	}
	if sum, known := wantedTime(os.Getpid()); known && sum <= 0 {
		t.Errorf("this process has run for %v", sum)
	}
	if _, known := wantedTime(-1); known {
		t.Error("how long a process ran that is not there is known")
	}
}
