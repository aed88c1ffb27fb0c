package pager_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

const oneRegion = `[{"base_host_virt_addr":140000000000000,"size":8192,"offset":0,"page_size":4096}]`

func TestParseRegions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, json string
		pageSize   uint64
		fails      string
	}{
		{"firecracker", `[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size":4096,"page_size_kib":4096}]`, 4096, ""},
		{"old, KiB", `[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size_kib":4}]`, 4096, ""},
		{"old, huge in bytes", `[{"base_host_virt_addr":2097152,"size":2097152,"offset":0,"page_size_kib":2097152}]`, 2 << 20, ""},
		{"huge in KiB", `[{"base_host_virt_addr":2097152,"size":2097152,"offset":0,"page_size_kib":2048}]`, 2 << 20, ""},
		{"no page size", `[{"base_host_virt_addr":4096,"size":8192,"offset":0,"unknown":1}]`, 4096, ""},
		{"empty", `[]`, 0, "regions"},
		{"null", `null`, 0, "regions"},
		{"not JSON", `hello`, 0, "JSON"},
		{"negative", `[{"base_host_virt_addr":4096,"size":-4096}]`, 0, "JSON"},
		{"odd page size", `[{"base_host_virt_addr":4096,"size":8192,"page_size":8192}]`, 0, "page size"},
		{"odd page size, KiB", `[{"base_host_virt_addr":4096,"size":8192,"page_size_kib":8}]`, 0, "page_size_kib"},
		{"mixed", `[{"base_host_virt_addr":4096,"size":4096},{"base_host_virt_addr":2097152,"size":2097152,"offset":2097152,"page_size":2097152}]`, 0, "page size"},
		{"no size", `[{"base_host_virt_addr":4096,"size":0}]`, 0, "size"},
		{"size not aligned", `[{"base_host_virt_addr":4096,"size":5000}]`, 0, "size"},
		{"size overflows", `[{"base_host_virt_addr":4096,"size":18446744073709547520}]`, 0, "size"},
		{"address not aligned", `[{"base_host_virt_addr":4097,"size":4096}]`, 0, "address"},
		{"address zero", `[{"base_host_virt_addr":0,"size":4096}]`, 0, "address"},
		{"address of the kernel", `[{"base_host_virt_addr":18446744073709547520,"size":4096}]`, 0, "address"},
		{"offset not aligned", `[{"base_host_virt_addr":4096,"size":4096,"offset":5}]`, 0, "offset"},
		{"offset overflows", `[{"base_host_virt_addr":4096,"size":4096,"offset":18446744073709547520}]`, 0, "offset"},
		{"addresses overlap", `[{"base_host_virt_addr":8192,"size":4096,"offset":8192},{"base_host_virt_addr":4096,"size":8192,"offset":0}]`, 0, "overlap at address"},
		{"offsets overlap", `[{"base_host_virt_addr":8192,"size":8192},{"base_host_virt_addr":40960,"size":4096,"offset":4096}]`, 0, "overlap at offset"},
		{"too many", "[" + strings.Repeat("{},", pager.MaxRegions) + "{}]", 0, "regions"},
		{"too long", oneRegion + strings.Repeat(" ", 1<<20), 0, "bytes"},
	} {
		regions, err := pager.ParseRegions([]byte(tc.json))
		switch {
		case tc.fails == "" && (err != nil || len(regions) != 1 || regions[0].PageSize != tc.pageSize):
			t.Errorf("%s: %+v, %v", tc.name, regions, err)
		case tc.fails != "" && (err == nil || !strings.Contains(err.Error(), tc.fails)):
			t.Errorf("%s: error %v, want one about %q", tc.name, err, tc.fails)
		}
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte(oneRegion))
	f.Add([]byte(`[{"base_host_virt_addr":2097152,"size":2097152,"offset":0,"page_size_kib":2048}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		regions, err := pager.ParseRegions(data)
		if err != nil {
			return
		}
		if err := pager.ValidateRegions(regions); err != nil {
			t.Error(err)
		}
		for _, r := range regions {
			if r.Base+r.Size < r.Base || r.Offset+r.Size < r.Offset {
				t.Errorf("%+v overflows", r)
			}
		}
	})
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

// What is no handshake is refused, and no descriptor that came stays open.
func TestReceiveHandshakeRefuses(t *testing.T) {
	needUFFD(t)
	u, err := pager.NewUFFD(0)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	bad, good := int(null.Fd()), u.FD()
	for _, tc := range []struct {
		name, json string
		fds        []int
	}{
		{"no descriptor", oneRegion, nil},
		{"two", oneRegion, []int{good, good}},
		{"ten", oneRegion, []int{good, good, good, good, good, good, good, good, good, good}},
		{"another file", oneRegion, []int{bad}},
		{"wrong JSON", "[1]", []int{good}},
		{"half", "[{", []int{good}},
		{"nothing", "", nil},
		{"endless", strings.Repeat("[", 1<<20), []int{good}},
	} {
		a, b := socketPair(t)
		before := openFiles(t)
		go func() {
			// The reader may end first.
			if n, _, err := a.WriteMsgUnix([]byte(tc.json), unix.UnixRights(tc.fds...), nil); err == nil && n < len(tc.json) {
				_, _ = a.Write([]byte(tc.json[n:]))
			}
			_ = a.CloseWrite()
		}()
		if _, err := pager.ReceiveHandshake(deadline(t), b); err == nil {
			t.Error(tc.name, "was accepted")
		}
		_ = b.Close()
		if after := openFiles(t); after > before {
			t.Errorf("%s: %d files open, %d before", tc.name, after, before)
		}
	}
}

// A process whose handshake is refused dies before its descriptor closes: it
// would read zeros.
func TestRefusedHandshakeKillsFirst(t *testing.T) {
	t.Parallel()
	needUFFD(t)
	for name, tc := range map[string]struct {
		json  string
		limit time.Duration
	}{"JSON": {json: "[1]"}, "context": {json: "[", limit: 50 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := childConfig{Kind: "anon", Pages: 10, Check: true, Handshake: tc.json, Socket: filepath.Join(t.TempDir(), "uffd.sock")}
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			_ = l.SetDeadline(time.Now().Add(time.Minute))
			c := launch(t, cfg)
			conn, err := l.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx := deadline(t)
			if tc.limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tc.limit)
				defer cancel()
			}
			if _, err := pager.ReceiveHandshake(ctx, conn); err == nil || errors.Is(err, pager.ErrNotKilled) {
				t.Errorf("ReceiveHandshake: %v", err)
			}
			<-c.exit
			if code := c.cmd.ProcessState.ExitCode(); code != -1 {
				t.Errorf("child ended with %d, must be killed", code)
			}
		})
	}
}

func TestHandshakeInParts(t *testing.T) {
	needUFFD(t)
	u, err := pager.NewUFFD(0)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	a, b := socketPair(t)
	go func() {
		_, _, _ = a.WriteMsgUnix([]byte(oneRegion[:1]), unix.UnixRights(u.FD()), nil)
		for i := 1; i < len(oneRegion); i++ {
			_, _ = a.Write([]byte(oneRegion[i : i+1]))
		}
	}()
	h, err := pager.ReceiveHandshake(deadline(t), b)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Regions) != 1 || h.Regions[0].Size != 8192 {
		t.Errorf("%+v", h.Regions)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestReceiveHandshakeEndsWithContext(t *testing.T) {
	t.Parallel()
	_, b := socketPair(t)
	ctx, cancel := context.WithCancel(deadline(t))
	cancel()
	if _, err := pager.ReceiveHandshake(ctx, b); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
