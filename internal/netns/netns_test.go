package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/netns"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/vishvananda/netlink"
)

// namespace makes a namespace with its loopback up.
func namespace(t testing.TB) string {
	t.Helper()
	testenv.Root(t)
	path := filepath.Join(t.TempDir(), "ns")
	if err := netns.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	err := netns.Do(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// listen accepts TCP connections in the namespace, and closes them.
func listen(t testing.TB, path string) string {
	t.Helper()
	var l net.Listener
	err := netns.Do(path, func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}

func current(t testing.TB) string {
	t.Helper()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// allThreadsHome fails if a thread of this process is in another network
// namespace than the main thread.
func allThreadsHome(t testing.TB) {
	t.Helper()
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no threads found: %v", err)
	}
	for _, task := range tasks {
		got, err := os.Readlink(task)
		if err != nil {
			continue // the thread has ended
		}
		if got != want {
			t.Errorf("%s is %s, want %s", task, got, want)
		}
	}
}

func TestDo(t *testing.T) {
	path := namespace(t)
	before := current(t)
	var inside string
	sentinel := errors.New("sentinel")
	err := netns.Do(path, func() error {
		inside = current(t)
		return sentinel
	})
	if !errors.Is(err, sentinel) {
		t.Errorf("error = %v, want the function's own", err)
	}
	if inside == before {
		t.Error("the function ran in the caller's namespace")
	}
	if after := current(t); after != before {
		t.Errorf("namespace changed from %s to %s", before, after)
	}
}

func TestDoPanic(t *testing.T) {
	path := namespace(t)
	func() {
		defer func() {
			if r := recover(); r != "ouch" {
				t.Errorf("recovered %v, want the function's panic", r)
			}
		}()
		_ = netns.Do(path, func() error { panic("ouch") })
	}()
	exited := make(chan bool, 1)
	go func() {
		defer func() { exited <- true }()
		_ = netns.Do(path, func() error { runtime.Goexit(); return nil })
		t.Error("Do returned after Goexit")
	}()
	<-exited
}

func TestDoMissing(t *testing.T) {
	testenv.Root(t)
	for _, path := range []string{filepath.Join(t.TempDir(), "none"), os.DevNull} {
		err := netns.Do(path, func() error { t.Error("function ran"); return nil })
		if err == nil {
			t.Errorf("Do(%s) succeeded", path)
		}
	}
}

func TestCreateRemove(t *testing.T) {
	path := namespace(t)
	if err := netns.Create(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Create = %v, want ErrExist", err)
	}
	for range 2 {
		if err := netns.Remove(path); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("path is still there: %v", err)
	}
}

func TestDial(t *testing.T) {
	path := namespace(t)
	addr := listen(t, path)
	conn, err := netns.Dial(t.Context(), path, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("connection is a %T", conn)
	}
	if got := conn.RemoteAddr().String(); got != addr {
		t.Errorf("remote address %s, want %s", got, addr)
	}
	if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		// Another program may have the same port; it is not our listener.
		c.Close()
	}
}

func TestDialErrors(t *testing.T) {
	path := namespace(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	soon, cancel2 := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel2()
	full := blackhole(t, path)
	tests := []struct {
		name, network, address string
		ctx                    context.Context
		is                     error
	}{
		{"name", "tcp", "localhost:80", t.Context(), nil},
		{"network", "unix", "127.0.0.1:80", t.Context(), nil},
		{"family", "tcp6", "127.0.0.1:80", t.Context(), nil},
		{"cancelled", "tcp", "127.0.0.1:80", cancelled, context.Canceled},
		{"timeout", "tcp", full, soon, context.DeadlineExceeded},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := netns.Dial(test.ctx, path, test.network, test.address)
			if err == nil {
				c.Close()
				t.Fatal("no error")
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %v, want %v", err, test.is)
			}
		})
	}
	_, err := netns.Dial(t.Context(), path, "tcp", "127.0.0.1:1")
	var op *net.OpError
	if !errors.As(err, &op) {
		t.Errorf("refused connection: %v, want a *net.OpError", err)
	}
}

// blackhole makes an interface behind which nobody answers.
func blackhole(t *testing.T, path string) string {
	err := netns.Do(path, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "hole"}, PeerName: "hole1"}); err != nil {
			return err
		}
		link, err := netlink.LinkByName("hole")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("198.51.100.1/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("hole1")
		if err != nil {
			return err
		}
		for _, l := range []netlink.Link{link, peer} {
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		return netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: net.IPv4(198, 51, 100, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return "198.51.100.2:80"
}

func TestThreadsComeHome(t *testing.T) {
	path := namespace(t)
	addr := listen(t, path)
	before := current(t)
	self, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	limit := make(chan struct{}, 100)
	for i := range 1000 {
		wg.Add(1)
		limit <- struct{}{}
		go func() {
			defer wg.Done()
			defer func() { <-limit }()
			if i%2 == 0 {
				c, err := netns.Dial(t.Context(), path, "tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				c.Close()
				return
			}
			err := netns.Do(path, func() error {
				// Blocking calls provoke new threads, which must not inherit
				// the namespace.
				if _, err := os.ReadFile("/proc/self/stat"); err != nil {
					return err
				}
				if current(t) == before {
					return errors.New("not in the namespace")
				}
				if got, err := os.Readlink("/proc/self/ns/net"); err != nil || got != self {
					return fmt.Errorf("the main thread is away in %s: %w", got, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	allThreadsHome(t)
}

func BenchmarkDo(b *testing.B) {
	path := namespace(b)
	for b.Loop() {
		if err := netns.Do(path, func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDial(b *testing.B) {
	path := namespace(b)
	addr := listen(b, path)
	b.Run("netns", func(b *testing.B) {
		for b.Loop() {
			c, err := netns.Dial(b.Context(), path, "tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	})
	b.Run("plain", func(b *testing.B) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		var d net.Dialer
		for b.Loop() {
			c, err := d.DialContext(b.Context(), "tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	})
}
