package pager_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
	"github.com/skep-dev/skep/internal/testenv"
)

// The test binary runs itself again as the served process, or as a server.
const (
	childEnv  = "SKEP_PAGER_TEST_CHILD"
	serverEnv = "SKEP_PAGER_TEST_SERVER"

	exitUnserved = 7 // the connection to the server ended
	exitWrong    = 9 // a page had the wrong content
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(childEnv) != "":
		childMain()
	case os.Getenv(serverEnv) != "":
		serverMain()
	default:
		os.Exit(m.Run())
	}
}

// childConfig says what memory the child maps; its pages are spread over two
// mappings.
type childConfig struct {
	Socket  string
	Kind    string // anon, memfd or huge
	Pages   int
	Protect bool // register for write-protect faults too
	Check   bool // exit when a page is not what value says
	// Handshake, when set, is sent in place of the right one; the child has no
	// other descriptor then, and touches its memory.
	Handshake string
}

func (c childConfig) pageSize() int {
	if c.Kind == "huge" {
		return pager.HugePageSize
	}
	return pager.PageSize
}

// value is what every word of a page holds. Some pages are zeros.
func value(page uint64) uint64 {
	if page%5 == 4 || page%7 == 3 {
		return 0
	}
	return (page + 1) * 0x9E3779B97F4A7C15
}

// pattern is a Source of such pages; it knows only some of the zeros.
type pattern struct {
	pages, pageSize int
	fail            func(page uint64) error
}

func (p *pattern) Size() int64 { return int64(p.pages * p.pageSize) }
func (p *pattern) Zero(off, n int64) bool {
	return (off/int64(p.pageSize))%5 == 4 && n <= int64(p.pageSize)
}
func (p *pattern) ReadAt(b []byte, off int64) (int, error) {
	for i := 0; i < len(b); i += 8 {
		page := uint64(off+int64(i)) / uint64(p.pageSize)
		if p.fail != nil && i%p.pageSize == 0 {
			if err := p.fail(page); err != nil {
				return i, err
			}
		}
		binary.NativeEndian.PutUint64(b[i:], value(page))
	}
	return len(b), nil
}

// child is the running child, seen from the test.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	exit  chan struct{} // closed after Wait
	shake *pager.Handshake
	conn  *net.UnixConn
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// needUFFD skips where the machine has no userfaultfd for us.
func needUFFD(t *testing.T) {
	t.Helper()
	u, err := pager.NewUFFD(pager.FeatureEventRemove)
	if err != nil {
		t.Log(err)
		testenv.Root(t)
		t.Fatal(err)
	}
	_ = u.Close()
}

func spawn(t *testing.T, env, value string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	// The race detector would sleep a second at every exit.
	cmd.Env = append(os.Environ(), env+"="+value, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = outW
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = outW.Close()
	c := &child{t: t, cmd: cmd, in: in, lines: make(chan string, 4096), exit: make(chan struct{})}
	go func() {
		defer close(c.lines)
		defer outR.Close()
		r := bufio.NewScanner(outR)
		r.Buffer(nil, 1<<20)
		for r.Scan() {
			c.lines <- r.Text()
		}
	}()
	go func() {
		_ = cmd.Wait()
		close(c.exit)
	}()
	t.Cleanup(c.stop)
	return c
}

// startChild starts a child and receives its handshake.
func startChild(t *testing.T, cfg childConfig) *child {
	t.Helper()
	needUFFD(t)
	cfg.Socket = filepath.Join(t.TempDir(), "uffd.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_ = l.SetDeadline(time.Now().Add(time.Minute))
	c := launch(t, cfg)
	c.conn, err = l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c.shake, err = pager.ReceiveHandshake(deadline(t), c.conn)
	if err != nil {
		t.Fatal(err)
	}
	c.expect("ready")
	return c
}

func launch(t *testing.T, cfg childConfig) *child {
	t.Helper()
	env, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return spawn(t, childEnv, string(env))
}

// config serves the child from its pattern.
func (c *child) config(src pager.Source) pager.Config {
	return pager.Config{UFFD: c.shake.UFFD, Regions: c.shake.Regions, Process: c.shake.Process, Source: src,
		Kill: func(context.Context) error { return c.cmd.Process.Kill() }}
}

// serve starts a server; the returned function waits for its end.
func (c *child) serve(ctx context.Context, cfg pager.Config) (*pager.Server, func() error) {
	c.t.Helper()
	s, err := pager.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- s.Serve(ctx) }()
	return s, sync.OnceValue(func() error {
		select {
		case err := <-result:
			return err
		case <-time.After(time.Minute):
			return errors.New("Serve did not end")
		}
	})
}

func (c *child) send(format string, args ...any) {
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Errorf("send to child: %v", err)
	}
}

func (c *child) expect(want string) {
	c.t.Helper()
	if got := c.answer(); got != want {
		c.t.Fatalf("child said %q, want %q", got, want)
	}
}

func (c *child) answer() string {
	c.t.Helper()
	select {
	case line, ok := <-c.lines:
		if !ok {
			c.t.Fatal("child ended")
		}
		return line
	case <-time.After(time.Minute):
		c.t.Fatal("child does not answer")
	}
	return ""
}

// look has the child read pages and compares them with want.
func (c *child) look(pages []int, want func(uint64) uint64) {
	c.t.Helper()
	c.send("look %s", strings.Trim(fmt.Sprint(pages), "[]"))
	got := strings.Fields(c.answer())
	if len(got) != len(pages) {
		c.t.Fatalf("child looked at %d pages, answered %v", len(pages), got)
	}
	for i, p := range pages {
		if w := strconv.FormatUint(want(uint64(p)), 10); got[i] != w {
			c.t.Fatalf("page %d is %s, want %s", p, got[i], w)
		}
	}
}

func (c *child) stop() {
	_ = c.in.Close()
	_ = c.cmd.Process.Kill()
	<-c.exit
	if c.conn != nil {
		_ = c.conn.Close()
	}
	if c.shake != nil {
		_ = c.shake.UFFD.Close()
		_ = unix.Close(c.shake.Process)
		c.shake = nil
	}
}

func sequence(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

func pagesOf(order []int) []uint64 {
	out := make([]uint64, len(order))
	for i, p := range order {
		out[i] = uint64(p)
	}
	return out
}

func samePages(t *testing.T, got, want []uint64) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("pages %v, want %v", got, want)
	}
}
