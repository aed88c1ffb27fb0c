package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestSaveStuck: a checkpoint ends late, or never. The sandbox is a process in
// a cgroup, with a control socket that answers as the test has it.
func TestSaveStuck(t *testing.T) {
	t.Parallel()
	testenv.Root(t)
	for _, tt := range []struct {
		name   string
		grace  time.Duration
		answer bool // once Save's time is over
	}{
		{"late", time.Minute, true},
		{"never", 50 * time.Millisecond, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			id := sandbox.NewID()
			s := newInstance("", &sandbox.Spec{ID: id, Dir: t.TempDir(), Cgroup: "skep-savetest-" + id})
			s.started = true
			group, err := cgroup.Create(s.spec.Cgroup, cgroup.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			s.group = group
			process := exec.Command("sleep", "1000")
			if err := process.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = process.Wait(); close(ended) }()
			t.Cleanup(func() {
				if err := s.Destroy(context.Background()); err != nil {
					t.Error(err)
				}
				<-ended
			})
			if err := group.Add(process.Process.Pid); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s.socket = controlSocket(t, func(c net.Conn) {
				cancel() // it writes its checkpoint: Save's time is over
				if tt.answer {
					_ = json.NewEncoder(c).Encode(map[string]bool{"success": true})
				}
			})
			dir := t.TempDir()
			err = s.save(ctx, sandbox.SaveOptions{Dir: dir}, tt.grace)
			if !errors.Is(err, context.Canceled) || errors.Is(err, sandbox.ErrNotRunning) == tt.answer {
				t.Errorf("save: %v", err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left in the folder: %v, %v", left, err)
			}
			short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if _, err := s.Wait(short); (err == nil) == tt.answer {
				t.Errorf("Wait: %v", err)
			}
			select {
			case <-ended:
				if tt.answer {
					t.Error("a sandbox that goes on was killed")
				}
			default:
				if !tt.answer {
					<-ended // it was killed, or the test hangs
				}
			}
		})
	}
}

// controlSocket is the control socket of a sandbox that takes one request, and
// leaves the connection open after it has answered.
func controlSocket(t *testing.T, answer func(net.Conn)) string {
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Read(make([]byte, 64<<10)); err == nil {
			answer(c)
		}
	}()
	return path
}
