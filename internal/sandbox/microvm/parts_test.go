package microvm

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/sandbox"
)

func TestConsole(t *testing.T) {
	c := readConsole(io.NopCloser(strings.NewReader(
		"a\x1b[31mb\n" + strings.Repeat("x", 5000) + "\n" + agent.ReadyMessage + "\r\n" + agent.ReadyMessage + "\n")))
	<-c.Done()
	select {
	case <-c.Ready():
	default:
		t.Error("the agent's line was not seen")
	}
	if s := c.Tail(); strings.ContainsRune(s, '\x1b') || len(s) > 5*600 {
		t.Errorf("%d bytes kept: %.100q", len(s), s)
	}
	c = readConsole(io.NopCloser(strings.NewReader(
		agent.FailedMessage + " no root disk\n" + strings.Repeat("noise\n", 20))))
	<-c.Done()
	if s := c.Tail(); !strings.Contains(s, "no root disk") {
		t.Errorf("the reason is lost: %q", s)
	}
}

func TestTailBuffer(t *testing.T) {
	var b tailBuffer
	for i := range 1000 {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	if s := b.String(); len(s) > 4<<10 || !strings.HasSuffix(s, "line 998 line 999") {
		t.Errorf("kept %d bytes, %q", len(s), s[max(0, len(s)-20):])
	}
}

func TestUID(t *testing.T) {
	seen := map[uint32]bool{}
	for range 100 {
		id := UID(sandbox.NewID())
		if id < 1879048192 || id > 1879048192+0xffffff {
			t.Errorf("user %d is out of range", id)
		}
		seen[id] = true
	}
	if len(seen) < 95 {
		t.Errorf("100 sandboxes have %d users", len(seen))
	}
}

func TestKillMatching(t *testing.T) {
	word := "skep-test-" + sandbox.NewID()
	// The name as an argument of its own, and as a part of one.
	ours := exec.Command("sh", "-c", "read x", word)
	other := exec.Command("sh", "-c", "read x", word+"-other")
	for _, c := range []*exec.Cmd{ours, other} {
		if _, err := c.StdinPipe(); err != nil { // that never says anything
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	}
	ended := make(chan error, 1)
	go func() { ended <- ours.Wait() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := KillMatching(ctx, func(args []string) bool { return slices.Contains(args, word) })
	if err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Error("another process was killed")
	}
}
