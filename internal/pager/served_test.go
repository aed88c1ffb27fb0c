package pager_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

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
		err = unmap(c.span(n[0], n[1]))
	case "vanish": // like unmap, while a thread waits for the first page
		return c.vanish(c.span(n[0], n[1]))
	}
	if err != nil {
		return "error " + err.Error()
	}
	return "done"
}

func unmap(s []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(unsafe.Pointer(&s[0])), uintptr(len(s)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// vanish unmaps memory that a thread waits for, before anybody serves it: it
// says so as soon as the mapping has gone, and at last what the thread has seen.
func (c *childMemory) vanish(s []byte) string {
	seen, unmapped := make(chan string, 1), make(chan error, 1)
	go func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if recover() != nil {
				seen <- "no such memory"
			}
		}()
		seen <- fmt.Sprint(s[0])
	}()
	fds := []unix.PollFd{{Fd: int32(c.uffd.FD()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 60_000); n != 1 {
		return fmt.Sprint("error no page fault: ", err)
	}
	go func() { unmapped <- unmap(s) }()                           // which waits for the server
	for there := make([]byte, 1); ; time.Sleep(time.Millisecond) { // nothing signals it
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&s[0])), pager.PageSize, uintptr(unsafe.Pointer(&there[0])))
		if errno == unix.ENOMEM {
			break
		}
	}
	fmt.Println("unmapped")
	if err := <-unmapped; err != nil {
		return "error " + err.Error()
	}
	return <-seen
}
