package pager_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

func address(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&mem[0]))) }

var errSource = errors.New("source failed")

// failing fails at the n-th page read.
func failing(pages int, n int64, fail func() error) *pattern {
	var reads atomic.Int64
	return &pattern{pages: pages, pageSize: pager.PageSize, fail: func(uint64) error {
		if reads.Add(1) >= n {
			return fail()
		}
		return nil
	}}
}

// isUFFD tells whether the descriptor is (still) a userfaultfd.
func isUFFD(fd int) bool {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && link == "anon_inode:[userfaultfd]"
}

// The machine must die before the descriptor closes, or it would read zeros.
func TestFailureKillsFirst(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error": func() error { return errSource },
		"panic": func() error { panic(errSource.Error()) },
	} {
		t.Run(name, func(t *testing.T) {
			const pages = 100
			c := startChild(t, childConfig{Kind: "anon", Pages: pages, Check: true})
			conf := c.config(failing(pages, 5, fail))
			fd, open := c.shake.UFFD.FD(), false
			conf.Kill = func(context.Context) error {
				open = isUFFD(fd)
				return c.cmd.Process.Kill()
			}
			_, wait := c.serve(deadline(t), conf)
			c.send("race 4")
			err := wait()
			if err == nil || name == "error" && !errors.Is(err, errSource) {
				t.Errorf("Serve: %v", err)
			}
			if !open {
				t.Error("descriptor was closed before Kill")
			}
			<-c.exit
			if code := c.cmd.ProcessState.ExitCode(); code != -1 {
				t.Errorf("child ended with %d, must be killed", code)
			}
		})
	}
}

// When Kill fails, the process is killed by its pidfd.
func TestKillFailsThenSignal(t *testing.T) {
	c := startChild(t, childConfig{Kind: "anon", Pages: 10, Check: true})
	conf := c.config(failing(10, 1, func() error { return errSource }))
	conf.Kill = func(context.Context) error { return errors.New("no") }
	_, wait := c.serve(deadline(t), conf)
	c.send("race 2")
	if err := wait(); !errors.Is(err, errSource) || errors.Is(err, pager.ErrNotKilled) {
		t.Errorf("Serve: %v", err)
	}
	<-c.exit
}

// A machine that cannot be killed keeps its descriptor: it hangs.
func TestNotKilledStaysOpen(t *testing.T) {
	c := startChild(t, childConfig{Kind: "anon", Pages: 10, Check: true})
	conf := c.config(failing(10, 1, func() error { return errSource }))
	conf.Process = -1
	tries := 0
	conf.Kill = func(context.Context) error {
		tries++
		panic("no")
	}
	_, wait := c.serve(deadline(t), conf)
	c.send("race 2")
	if err := wait(); !errors.Is(err, errSource) || !errors.Is(err, pager.ErrNotKilled) {
		t.Errorf("Serve: %v", err)
	}
	if tries < 2 || !isUFFD(c.shake.UFFD.FD()) {
		t.Errorf("%d tries, descriptor open: %t", tries, isUFFD(c.shake.UFFD.FD()))
	}
	select {
	case line := <-c.lines:
		t.Errorf("child went on: %q", line)
	case <-c.exit:
		t.Error("child ended")
	default:
	}
}

// A slow source must not keep the machine alive after cancellation.
func TestCancelKillsWhileSourceHangs(t *testing.T) {
	c := startChild(t, childConfig{Kind: "anon", Pages: 10, Check: true})
	reading, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	conf := c.config(failing(10, 1, func() error {
		once.Do(func() { close(reading) })
		<-release
		return errSource
	}))
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	_, wait := c.serve(ctx, conf)
	c.send("race 2")
	<-reading
	cancel()
	<-c.exit
	if !isUFFD(c.shake.UFFD.FD()) {
		t.Error("descriptor closed while a worker uses it")
	}
	close(release)
	if err := wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
}

// The served process is killed at any moment: the server ends without error.
func TestChildKilled(t *testing.T) {
	t.Parallel()
	const pages = 4000
	src := &pattern{pages: pages, pageSize: pager.PageSize}
	ws := workingSet(t, pager.Recording{PageSize: pager.PageSize, Pages: pagesOf(sequence(pages))}, src, false)
	for i := range 20 {
		c := startChild(t, childConfig{Kind: "anon", Pages: pages, Check: true})
		conf := c.config(src)
		if i%2 == 0 {
			conf.WorkingSet = ws
		}
		if i%4 > 1 {
			conf.Workers = 3
		}
		after, faults := rand.Int64N(200), atomic.Int64{}
		conf.OnFault = func(pager.Fault) {
			if faults.Add(1) == after {
				_ = c.cmd.Process.Kill()
			}
		}
		_, wait := c.serve(deadline(t), conf)
		c.send("race 4")
		select {
		case <-c.lines: // all was there before the kill, or the end of output
			_ = c.cmd.Process.Kill()
		case <-c.exit:
		}
		if err := wait(); err != nil {
			t.Error(err)
		}
		c.stop()
	}
}

// The server is killed at any moment: a process that kept its descriptor
// never sees a wrong page and ends with the connection.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	needUFFD(t)
	const pages = 2000
	for range 10 {
		socket := filepath.Join(t.TempDir(), "uffd.sock")
		server := spawn(t, serverEnv, socket)
		server.expect("listening")
		c := launch(t, childConfig{Socket: socket, Kind: "anon", Pages: pages, Check: true})
		c.expect("ready")
		c.send("race 4")
		for range 1 + rand.IntN(500) {
			<-server.lines
		}
		_ = server.cmd.Process.Kill()
		select {
		case <-c.exit:
		case <-time.After(time.Minute):
			t.Fatal("child does not end")
		}
		if code := c.cmd.ProcessState.ExitCode(); code != exitUnserved {
			t.Errorf("child ended with %d", code)
		}
	}
}

// serverMain serves one child from the pattern and prints a line per fault.
func serverMain() {
	err := func() error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: os.Getenv(serverEnv), Net: "unix"})
		if err != nil {
			return err
		}
		fmt.Println("listening")
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		h, err := pager.ReceiveHandshake(context.Background(), conn)
		if err != nil {
			return err
		}
		s, err := pager.New(pager.Config{UFFD: h.UFFD, Regions: h.Regions, Process: h.Process,
			Source:  &pattern{pages: 2000, pageSize: pager.PageSize},
			Kill:    func(context.Context) error { return unix.PidfdSendSignal(h.Process, unix.SIGKILL, nil, 0) },
			OnFault: func(pager.Fault) { fmt.Println("fault") }})
		if err != nil {
			return err
		}
		return s.Serve(context.Background())
	}()
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	os.Exit(0)
}
