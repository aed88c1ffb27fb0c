package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

func testExit(t *testing.T, s *suite) {
	args := func(args ...string) func(*sandbox.Spec) {
		return func(spec *sandbox.Spec) { spec.Process.Args = args }
	}
	for _, test := range []struct {
		name         string
		args         []string
		code, signal int
	}{
		{"Zero", []string{"/guest", "echo", "done"}, 0, 0},
		{"One", []string{"/guest", "nonsense"}, 1, 0},
		{"Code", []string{"/guest", "exit", "37"}, 37, 0},
		{"High", []string{"/guest", "exit", "255"}, 255, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := s.start(t, args(test.args...))
			e := b.wait(t)
			if e.Code != test.code || e.Signal != test.signal || e.OOMKilled {
				t.Errorf("ended with %+v, want code %d, signal %d", e, test.code, test.signal)
			}
			if test.name == "Zero" {
				b.waitOutput(t, "stdout", "done\n") // all of it, though it ended at once
			}
		})
	}
	t.Run("Later", func(t *testing.T) {
		b := s.serve(t, nil)
		_, _ = b.try(s.ctx(t), "/exit?code=5", nil)
		if e := b.wait(t); e.Code != 5 {
			t.Errorf("ended with %+v, want code 5", e)
		}
		if c, err := b.sb.Dial(s.ctx(t), guestPort); err == nil {
			c.Close()
			t.Error("Dial to a function that has ended succeeded")
		}
	})
	// A driver may learn why a program does not start in Start, or later.
	for name, program := range map[string]string{
		"MissingBinary": "/no/such/program", "NotInPath": "no-such-program", "NotExecutable": "/srv/noexec",
	} {
		t.Run(name, func(t *testing.T) {
			b := s.create(t, args(program))
			err := b.sb.Start(s.ctx(t))
			reason := fmt.Sprint(err)
			if err == nil {
				e := b.wait(t)
				if e.Code == 0 {
					t.Errorf("ended with %+v, want a code", e)
				}
				reason = e.Reason
			}
			if !strings.Contains(reason, program) {
				t.Errorf("the reason is %q, want it to name %s", reason, program)
			}
		})
	}
}

func testSignal(t *testing.T, s *suite) {
	t.Run("Handled", func(t *testing.T) {
		b := s.serve(t, nil)
		if err := b.sb.Signal(s.ctx(t), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if e := b.wait(t); e.Code != 42 || e.Signal != 0 {
			t.Errorf("ended with %+v, want code 42", e)
		}
		b.waitOutput(t, "stdout", "guest: terminated\n")
		if err := b.sb.Signal(s.ctx(t), syscall.SIGTERM); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("Signal after the end: %v, want ErrNotRunning", err)
		}
	})
	t.Run("Kill", func(t *testing.T) {
		b := s.serve(t, nil)
		if err := b.sb.Signal(s.ctx(t), os.Kill); err != nil {
			t.Fatal(err)
		}
		if e := b.wait(t); e.Code != 128+9 || e.Signal != 9 || e.OOMKilled {
			t.Errorf("ended with %+v, want signal 9", e)
		}
	})
	t.Run("Ignored", func(t *testing.T) {
		b := s.start(t, func(spec *sandbox.Spec) { spec.Process.Args = []string{"/guest", "sleep"} })
		b.waitOutput(t, "stdout", "sleeping")
		if err := b.sb.Signal(s.ctx(t), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(s.ctx(t), 200*time.Millisecond)
		defer cancel()
		if e, err := b.sb.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %+v, %v; want context.DeadlineExceeded", e, err)
		}
	})
	t.Run("NotStarted", func(t *testing.T) {
		b := s.create(t, nil)
		if err := b.sb.Signal(s.ctx(t), syscall.SIGTERM); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("Signal before Start: %v, want ErrNotRunning", err)
		}
	})
}

func testWait(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	const waiters = 8
	exits, errs := make([]sandbox.Exit, waiters), make([]error, waiters)
	ctx := s.ctx(t)
	var wg sync.WaitGroup
	for i := range waiters {
		wg.Go(func() { exits[i], errs[i] = b.sb.Wait(ctx) })
	}
	_, _ = b.try(ctx, "/exit?code=3", nil)
	wg.Wait()
	for i, e := range exits {
		if errs[i] != nil || e != exits[0] || e.Code != 3 {
			t.Errorf("waiter %d: %+v, %v; want code 3, the same for all", i, e, errs[i])
		}
	}
	if e := b.wait(t); e != exits[0] {
		t.Errorf("Wait again: %+v, want %+v", e, exits[0])
	}
	b.destroy(t)
	if e := b.wait(t); e != exits[0] {
		t.Errorf("Wait after Destroy: %+v, want %+v", e, exits[0])
	}
}

func testStages(t *testing.T, s *suite) {
	t.Run("Created", func(t *testing.T) { s.create(t, nil) })
	t.Run("Started", func(t *testing.T) { s.start(t, nil) })
	t.Run("Exited", func(t *testing.T) {
		b := s.start(t, func(spec *sandbox.Spec) { spec.Process.Args = []string{"/guest", "exit", "0"} })
		b.wait(t)
	})
	t.Run("Twice", func(t *testing.T) {
		b := s.serve(t, nil)
		b.destroy(t)
		b.checkGone(t)
		// Those that wait are told, and operations fail.
		if e := b.wait(t); e.Code == 0 {
			t.Errorf("after Destroy: %+v, want a code", e)
		}
		if _, err := b.sb.Exec(s.ctx(t), sandbox.Exec{Process: sandbox.Process{Args: []string{"/guest", "id"}}}); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("Exec after Destroy: %v, want ErrNotRunning", err)
		}
		if c, err := b.sb.Dial(s.ctx(t), guestPort); err == nil {
			c.Close()
			t.Error("Dial after Destroy succeeded")
		}
		if st, err := b.sb.Stats(s.ctx(t)); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("Stats after Destroy: %+v, %v, want ErrNotRunning", st, err)
		}
		if err := b.sb.Start(s.ctx(t)); err == nil {
			t.Error("Start after Destroy succeeded")
		}
		b.destroy(t)
	})
	t.Run("Concurrently", func(t *testing.T) {
		b := s.serve(t, nil)
		ctx := s.ctx(t)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := b.sb.Destroy(ctx); err != nil {
					t.Errorf("Destroy: %v", err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("Families", func(t *testing.T) {
		b := s.serve(t, nil)
		b.get(t, "/fork", nil, "n", "20", "keep", "yes")
	})
	t.Run("StartTwice", func(t *testing.T) {
		b := s.serve(t, nil)
		if err := b.sb.Start(s.ctx(t)); err == nil {
			t.Error("a second Start succeeded")
		}
		b.get(t, "/args", nil)
	})
	t.Run("ReapRunning", func(t *testing.T) {
		// The owner lives, but asks for Reap instead: the same must be gone.
		b := s.serve(t, nil)
		for range 2 {
			if err := s.driver.Reap(s.ctx(t), b.spec.State()); err != nil {
				t.Errorf("Reap: %v", err)
			}
		}
		b.checkGone(t)
		if e := b.wait(t); e.Code == 0 {
			t.Errorf("after Reap: %+v, want a code", e)
		}
	})
}

func testCancelled(t *testing.T, s *suite) {
	t.Run("CreateAlready", func(t *testing.T) {
		b := s.prepare(t, false, nil)
		ctx, cancel := context.WithCancel(s.ctx(t))
		cancel()
		if sb, err := s.driver.Create(ctx, b.spec); err == nil {
			b.sb = sb
			t.Error("Create succeeded")
		}
	})
	// Whatever the moment: either there is a sandbox, or there is nothing.
	for _, after := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 80 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			b := s.prepare(t, false, nil)
			ctx, cancel := context.WithTimeout(s.ctx(t), after)
			defer cancel()
			sb, err := s.driver.Create(ctx, b.spec)
			if err != nil {
				b.checkGone(t)
				return
			}
			b.sb = sb
			if err := sb.Start(ctx); err != nil {
				t.Logf("Start: %v", err)
				return
			}
			b.ready(t) // the context was for starting only
			cancel()
			b.get(t, "/args", nil)
		})
	}
}

func testBadSpec(t *testing.T, s *suite) {
	garbage := filepath.Join(s.dir, "garbage.erofs")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("garbage ", 1024)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*sandbox.Spec)
		want   string
	}{
		{"NoRootfs", func(s *sandbox.Spec) { s.Rootfs += ".missing" }, ".missing"},
		{"GarbageRootfs", func(s *sandbox.Spec) { s.Rootfs = garbage }, "garbage.erofs"},
		{"UnknownUser", func(s *sandbox.Spec) { s.Process.User = "bob" }, `user "bob" not found in the image's /etc/passwd`},
		{"UnknownGroup", func(s *sandbox.Spec) { s.Process.User = "alice:wheel" }, `group "wheel" not found in the image's /etc/group`},
		{"NoArgs", func(s *sandbox.Spec) { s.Process.Args = nil }, "process.args"},
		{"BadID", func(s *sandbox.Spec) { s.ID = "../etc" }, "id"},
		{"BadCgroup", func(s *sandbox.Spec) { s.Cgroup = "../x" }, "cgroup"},
		{"NoNetNS", func(s *sandbox.Spec) { s.Link.NetNS = "/no/such/netns" }, "/no/such/netns"},
	} {
		t.Run(test.name, func(t *testing.T) {
			good := &box{}
			b := s.prepare(t, false, func(spec *sandbox.Spec) { good.spec = spec })
			spec := *good.spec
			test.change(&spec)
			sb, err := s.driver.Create(s.ctx(t), &spec)
			if err == nil { // then it must be noticed now
				b.sb = sb
				err = sb.Start(s.ctx(t))
			}
			if err == nil {
				t.Fatal("Create and Start succeeded")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not say %q", err, test.want)
			}
		})
	}
}
