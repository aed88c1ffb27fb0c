// Package skeptest runs the real skep binary on a folder of its own, for
// end-to-end tests and benchmarks.
package skeptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/daemon"
)

// Skep is a skep binary with a data folder.
type Skep struct {
	Binary string
	Dir    string   // --data
	Args   []string // further flags of `skep up`
	Env    []string // added to the environment of `skep up`

	Endpoints *daemon.Endpoints // of the running daemon

	mu  sync.Mutex
	cmd *exec.Cmd
	log *os.File
	end chan error
}

// Up starts the daemon on free ports of loopback and waits until it is ready.
func (s *Skep) Up(ctx context.Context) error {
	log, err := os.OpenFile(s.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	run := filepath.Join(s.Dir, "run")
	_ = os.Remove(filepath.Join(run, "endpoints.json")) // of an earlier run that was killed
	args := append([]string{"up", "--data", s.Dir, "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0",
		"--registry-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"}, s.Args...)
	cmd := exec.Command(s.Binary, args...) //nolint:noctx // it outlives ctx, which is for starting it
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), s.Env...)
	if err := cmd.Start(); err != nil {
		_ = log.Close()
		return err
	}
	end := make(chan error, 1)
	go func() { end <- cmd.Wait() }()
	s.mu.Lock()
	s.cmd, s.log, s.end = cmd, log, end
	s.mu.Unlock()
	for {
		e, err := daemon.ReadEndpoints(run)
		if err == nil && e.PID == cmd.Process.Pid {
			s.Endpoints = e
			return nil
		}
		select {
		case err := <-end:
			end <- err
			return fmt.Errorf("skep up ended before it was ready: %w\n%s", err, s.LogTail())
		case <-ctx.Done():
			_ = s.Kill()
			return fmt.Errorf("skep up was not ready in time: %w\n%s", ctx.Err(), s.LogTail())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Running reports whether the daemon was started and not stopped.
func (s *Skep) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd != nil
}

// PID of the running daemon.
func (s *Skep) PID() int { return s.cmd.Process.Pid }

// Kill ends the daemon with SIGKILL and waits for it.
func (s *Skep) Kill() error { return s.signal(syscall.SIGKILL, time.Minute) }

// Stop ends the daemon with SIGTERM and waits for it. The error says if it
// did not end well.
func (s *Skep) Stop() error { return s.signal(syscall.SIGTERM, 2*time.Minute) }

func (s *Skep) signal(sig syscall.Signal, wait time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	_ = s.cmd.Process.Signal(sig)
	var err error
	select {
	case err = <-s.end:
	case <-time.After(wait):
		_ = s.cmd.Process.Kill()
		<-s.end //nolint:errcheck // killed, as we know
		err = fmt.Errorf("skep up did not end within %s of %s\n%s", wait, sig, s.LogTail())
	}
	_ = s.log.Close()
	s.cmd = nil
	var exit *exec.ExitError
	if sig == syscall.SIGKILL && errors.As(err, &exit) {
		return nil
	}
	return err
}

// LogPath is the file with all that the daemon printed.
func (s *Skep) LogPath() string { return filepath.Join(s.Dir, "up.log") }

// LogTail is the end of the daemon's output.
func (s *Skep) LogTail() string {
	b, _ := os.ReadFile(s.LogPath())
	return string(b[max(0, len(b)-4000):])
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Run runs a command of the command line.
func (s *Skep) Run(ctx context.Context, args ...string) (Result, error) {
	cmd := exec.CommandContext(ctx, s.Binary, append([]string{"--data-dir", s.Dir}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errOut.String(), Code: cmd.ProcessState.ExitCode()}
	if err != nil {
		err = fmt.Errorf("skep %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(r.Stderr))
	}
	return r, err
}

// Host is the host name of a service in the default namespace.
func (s *Skep) Host(service string) string {
	return service + ".default." + s.Endpoints.Domain
}

// Client returns an HTTP client that reaches every service through the
// gateway, whatever the name resolves to.
func (s *Skep) Client() *http.Client {
	gateway := s.Endpoints.Gateway
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", gateway)
		},
		MaxIdleConnsPerHost: 256,
	}}
}

// Get requests a path of a service.
func (s *Skep) Get(ctx context.Context, c *http.Client, service, path string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Host(service)+path, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return resp, string(b), err
}

// Root is the root of the repository.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
	}
	return "", fmt.Errorf("%s is not below the repository's root", dir)
}
