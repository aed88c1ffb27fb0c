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
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

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

// childMain maps, registers and hands over its memory, then does what stdin
// says.
func childMain() {
	fatal := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(24) // a goroutine in a page fault keeps its P
	var cfg childConfig
	fatal(json.Unmarshal([]byte(os.Getenv(childEnv)), &cfg))
	features, mode := pager.FeatureEventRemove|pager.FeatureEventUnmap, pager.RegisterMissing
	if cfg.Protect {
		features, mode = features|pager.FeatureWriteProtect, mode|pager.RegisterWriteProtect
	}
	u, err := pager.NewUFFD(features)
	fatal(err)
	var maps [2][]byte
	var regions []pager.Region
	half := cfg.Pages / 2
	for i, n := range []int{half, cfg.Pages - half} {
		maps[i], err = mapMemory(cfg.Kind, n*cfg.pageSize())
		fatal(err)
		base := uint64(uintptr(unsafe.Pointer(&maps[i][0])))
		fatal(u.Register(base, uint64(len(maps[i])), mode))
		regions = append(regions, pager.Region{Base: base, Size: uint64(len(maps[i])),
			Offset: uint64(i * half * cfg.pageSize()), PageSize: uint64(cfg.pageSize())})
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: cfg.Socket, Net: "unix"})
	fatal(err)
	if cfg.Handshake != "" {
		_, _, err := conn.WriteMsgUnix([]byte(cfg.Handshake), unix.UnixRights(u.FD()), nil)
		fatal(errors.Join(err, u.Close()))
		(&childMemory{cfg: cfg, maps: maps, half: half}).look(0)
		os.Exit(0)
	}
	fatal(pager.SendHandshake(context.Background(), conn, u, regions))
	go func() {
		_, _ = conn.Read(make([]byte, 1))
		os.Exit(exitUnserved)
	}()
	c := &childMemory{uffd: u, cfg: cfg, maps: maps, half: half}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		fmt.Println(c.do(strings.Fields(in.Text())))
	}
	os.Exit(0)
}

func mapMemory(kind string, size int) ([]byte, error) {
	if kind == "anon" {
		return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	}
	flags := unix.MFD_CLOEXEC
	if kind == "huge" {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate("pager-test", flags)
	if err != nil {
		return nil, err
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

type childMemory struct {
	uffd *pager.UFFD
	cfg  childConfig
	maps [2][]byte
	half int
}

func (c *childMemory) page(i int) []byte {
	m, size := c.maps[0], c.cfg.pageSize()
	if i >= c.half {
		m, i = c.maps[1], i-c.half
	}
	return m[i*size : (i+1)*size]
}

func (c *childMemory) span(first, count int) []byte {
	return unsafe.Slice(&c.page(first)[0], count*c.cfg.pageSize())
}

// look is the value of a page.
func (c *childMemory) look(i int) uint64 {
	p := c.page(i)
	v := binary.NativeEndian.Uint64(p)
	for o := 8; o < len(p); o += 8 {
		if binary.NativeEndian.Uint64(p[o:]) != v {
			fmt.Println("error: page", i, "is mixed")
			os.Exit(exitWrong)
		}
	}
	if c.cfg.Check && v != value(uint64(i)) {
		os.Exit(exitWrong)
	}
	return v
}

func (c *childMemory) do(args []string) string {
	var n []int
	for _, a := range args[1:] {
		i, err := strconv.Atoi(a)
		if err != nil {
			return "error " + err.Error()
		}
		n = append(n, i)
	}
	var err error
	switch args[0] {
	case "look": // page...
		out := make([]string, len(n))
		for i, page := range n {
			out[i] = strconv.FormatUint(c.look(page), 10)
		}
		return strings.Join(out, " ")
	case "race": // threads: all read every page, every second one backwards
		var wg sync.WaitGroup
		for t := range n[0] {
			wg.Go(func() {
				for i := range c.cfg.Pages {
					if t%2 == 1 {
						i = c.cfg.Pages - 1 - i
					}
					c.look(i)
				}
			})
		}
		wg.Wait()
		return "done"
	case "write": // page, value
		p := c.page(n[0])
		for o := 0; o < len(p); o += 8 {
			binary.NativeEndian.PutUint64(p[o:], uint64(n[1]))
		}
		return "done"
	case "dontneed": // first, count
		err = unix.Madvise(c.span(n[0], n[1]), unix.MADV_DONTNEED)
	case "protect":
		s := c.span(n[0], n[1])
		err = c.uffd.WriteProtect(address(s), uint64(len(s)), true)
	case "remove":
		err = unix.Madvise(c.span(n[0], n[1]), unix.MADV_REMOVE)
	case "unmap":
		s := c.span(n[0], n[1])
		_, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(unsafe.Pointer(&s[0])), uintptr(len(s)), 0)
		if errno != 0 {
			err = errno
		}
	}
	if err != nil {
		return "error " + err.Error()
	}
	return "done"
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
