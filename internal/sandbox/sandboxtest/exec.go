package sandboxtest

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
)

// exec runs a process and returns what it said.
func (b *box) exec(t *testing.T, p sandbox.Process, stdin *os.File) (e sandbox.Exit, stdout, stderr string, err error) {
	t.Helper()
	var files [2]*os.File
	for i := range files {
		if files[i], err = os.CreateTemp(b.s.dir, "exec-"); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(files[i].Name())
		defer files[i].Close()
	}
	e, err = b.sb.Exec(b.s.ctx(t), sandbox.Exec{Process: p, Stdin: stdin, Stdout: files[0], Stderr: files[1]})
	var out [2]string
	for i, f := range files {
		text, rerr := os.ReadFile(f.Name())
		if rerr != nil {
			t.Fatal(rerr)
		}
		out[i] = string(text)
	}
	return e, out[0], out[1], err
}

func testExec(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	t.Run("Output", func(t *testing.T) {
		e, out, errOut, err := b.exec(t, sandbox.Process{Args: []string{"guest", "echo", "a", "b  c"}}, nil)
		if err != nil || e.Code != 0 || out != "a b  c\n" || errOut != "2\n" {
			t.Errorf("%+v, stdout %q, stderr %q, %v", e, out, errOut, err)
		}
	})
	t.Run("Process", func(t *testing.T) {
		p := sandbox.Process{Args: []string{"/guest", "id"}, Cwd: "/home/alice", User: "alice"}
		e, out, _, err := b.exec(t, p, nil)
		if err != nil || e.Code != 0 || !strings.HasPrefix(out, "{1000 1000 ") || !strings.Contains(out, " /home/alice conformance ") {
			t.Errorf("%+v, stdout %q, %v", e, out, err)
		}
		p = sandbox.Process{Args: []string{"/guest", "env"}, Env: []string{"A=b c"}}
		e, out, _, err = b.exec(t, p, nil)
		if err != nil || e.Code != 0 || !strings.Contains(out, "A=b c\n") || !strings.Contains(out, "PATH=") {
			t.Errorf("%+v, stdout %q, %v", e, out, err)
		}
	})
	t.Run("Stdin", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		text := strings.Repeat("to and fro\n", 50_000)
		go func() {
			_, _ = io.WriteString(w, text)
			w.Close()
		}()
		e, out, _, err := b.exec(t, sandbox.Process{Args: []string{"/guest", "cat"}}, r)
		if err != nil || e.Code != 0 || out != text {
			t.Errorf("%+v, %d bytes of %d came back, %v", e, len(out), len(text), err)
		}
	})
	t.Run("NoFiles", func(t *testing.T) {
		e, err := b.sb.Exec(s.ctx(t), sandbox.Exec{Process: sandbox.Process{Args: []string{"/guest", "cat"}}})
		if err != nil || e.Code != 0 {
			t.Errorf("%+v, %v", e, err)
		}
	})
	t.Run("Codes", func(t *testing.T) {
		e, _, _, err := b.exec(t, sandbox.Process{Args: []string{"/guest", "exit", "9"}}, nil)
		if err != nil || e.Code != 9 || e.Signal != 0 {
			t.Errorf("exit 9: %+v, %v", e, err)
		}
		e, _, _, err = b.exec(t, sandbox.Process{Args: []string{"/guest", "kill", "9"}}, nil)
		if err != nil || e.Code != 128+9 {
			t.Errorf("killed by signal 9: %+v, %v", e, err)
		}
	})
	t.Run("Missing", func(t *testing.T) {
		e, _, errOut, err := b.exec(t, sandbox.Process{Args: []string{"/no/such/program"}}, nil)
		told := e.Reason + errOut
		if err != nil {
			told += err.Error()
		}
		if (err == nil && e.Code == 0) || !strings.Contains(told, "/no/such/program") {
			t.Errorf("%+v, stderr %q, %v; want an error that names the program", e, errOut, err)
		}
	})
	t.Run("UnknownUser", func(t *testing.T) {
		_, _, _, err := b.exec(t, sandbox.Process{Args: []string{"/guest", "id"}, User: "bob"}, nil)
		if err == nil || !strings.Contains(err.Error(), `user "bob" not found in the image's /etc/passwd`) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("NotStarted", func(t *testing.T) {
		c := s.create(t, nil)
		if _, _, _, err := c.exec(t, sandbox.Process{Args: []string{"/guest", "id"}}, nil); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("Exec before Start: %v, want ErrNotRunning", err)
		}
	})
	b.get(t, "/args", nil) // the function did not notice
}

func testExecCancel(t *testing.T, s *suite) {
	b := s.serve(t, nil)
	out, err := os.CreateTemp(s.dir, "exec-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	ctx, cancel := context.WithCancel(s.ctx(t))
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := b.sb.Exec(ctx, sandbox.Exec{Process: sandbox.Process{Args: []string{"/guest", "sleep"}}, Stdout: out})
		done <- err
	}()
	if err := poll(s.ctx(t), func() error {
		text, err := os.ReadFile(out.Name())
		if err == nil && !strings.Contains(string(text), "sleeping") {
			err = errors.New("the process has not started")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	before := b.guestProcesses(t)
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Exec: %v, want context.Canceled", err)
		}
	case <-time.After(s.opts.Timeout):
		t.Fatal("Exec did not return when it was cancelled")
	}
	if err := poll(s.ctx(t), func() error {
		if now := b.guestProcesses(t); now >= before {
			return errors.New("the process is still there")
		}
		return nil
	}); err != nil {
		t.Errorf("%v: %d processes", err, before)
	}
	b.get(t, "/args", nil)
}

// guestProcesses counts the processes that the guest sees.
func (b *box) guestProcesses(t *testing.T) int {
	t.Helper()
	var n int
	b.get(t, "/processes", &n)
	return n
}
