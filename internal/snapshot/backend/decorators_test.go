package backend_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/skep-dev/skep/internal/snapshot/backend"
	"github.com/skep-dev/skep/internal/snapshot/backend/backendtest"
	"github.com/skep-dev/skep/internal/snapshot/backend/memory"
)

var errPassing = errors.New("connection reset")

// flaky fails each call's first attempts, before or after its effect, and cuts
// every reader after a third of the object.
type flaky struct {
	backend.Backend
	calls atomic.Int64
	late  bool
	puts  bool // Put works always
}

func (f *flaky) fails() bool { return f.calls.Add(1)%3 != 0 }

func (f *flaky) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	fails := !f.puts && f.fails()
	if fails && !f.late {
		io.CopyN(io.Discard, r, size/2)
		return errPassing
	}
	err := f.Backend.Put(ctx, name, r, size)
	if err == nil && fails {
		return errPassing
	}
	return err
}

func (f *flaky) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if f.fails() {
		return nil, errPassing
	}
	rc, err := f.Backend.Get(ctx, name, offset, length)
	if err != nil {
		return nil, err
	}
	info, err := f.Backend.Stat(ctx, name)
	if err != nil {
		rc.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&cutReader{rc, info.Size/3 + 1}, rc}, nil
}

// cutReader breaks after n bytes, unless its source ends before.
type cutReader struct {
	r io.Reader
	n int64
}

func (c *cutReader) Read(p []byte) (int, error) {
	if c.n == 0 {
		return 0, errPassing
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.n)])
	c.n -= int64(n)
	return n, err
}

func (f *flaky) Stat(ctx context.Context, name string) (backend.Info, error) {
	if f.fails() {
		return backend.Info{}, errPassing
	}
	return f.Backend.Stat(ctx, name)
}

func (f *flaky) List(ctx context.Context, prefix string, fn func(backend.Info) error) error {
	fails, n := f.fails(), 0
	return f.Backend.List(ctx, prefix, func(i backend.Info) error {
		if n++; fails && n == 2 {
			return errPassing
		}
		return fn(i)
	})
}

func TestRetryHidesPassingFailures(t *testing.T) {
	for _, late := range []bool{false, true} {
		b := backend.Retry(&flaky{Backend: memory.New(), late: late}, backend.RetryOptions{Attempts: 12, Min: 1, Max: 1})
		ctx := t.Context()
		for _, name := range []string{"a", "b", "c"} {
			if err := b.Put(ctx, name, strings.NewReader("0123456789"), 10); err != nil {
				t.Fatal(err)
			}
		}
		rc, err := b.Get(ctx, "a", 1, -1)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(rc); err != nil || string(got) != "123456789" {
			t.Errorf("read %q, %v", got, err)
		}
		rc.Close()
		if _, err := b.Stat(ctx, "a"); err != nil {
			t.Error(err)
		}
		seen := map[string]int{}
		if err := b.List(ctx, "", func(i backend.Info) error { seen[i.Name]++; return nil }); err != nil || len(seen) != 3 {
			t.Errorf("List: %v, %v", seen, err)
		}
		for name, n := range seen {
			if n != 1 {
				t.Errorf("%s was shown %d times", name, n)
			}
		}
	}
}

type failing struct {
	backend.Backend
	calls int
	err   error
}

func (f *failing) Put(context.Context, string, io.Reader, int64) error { f.calls++; return f.err }

func TestRetryGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		src  io.Reader
		want int
	}{
		"passing":    {errPassing, strings.NewReader("x"), 4},
		"permanent":  {backend.ErrExist, strings.NewReader("x"), 1},
		"not seeker": {errPassing, io.MultiReader(strings.NewReader("x")), 1},
	} {
		f := &failing{err: c.err}
		b := backend.Retry(f, backend.RetryOptions{Attempts: 4, Min: 1, Max: 1})
		if err := b.Put(t.Context(), "x", c.src, 1); !errors.Is(err, c.err) || f.calls != c.want {
			t.Errorf("%s: %d calls, %v; want %d, %v", name, f.calls, err, c.want, c.err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	f := &failing{err: errPassing}
	b := backend.Retry(f, backend.RetryOptions{Min: 1 << 40, Max: 1 << 41, OnRetry: func(string, string, int, error) { cancel() }})
	if err := b.Put(ctx, "x", strings.NewReader("x"), 1); !errors.Is(err, context.Canceled) || !errors.Is(err, errPassing) || f.calls != 1 {
		t.Errorf("cancelled while it waits: %d calls, %v", f.calls, err)
	}
}

func TestRetryConformsOverFlaky(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend {
		return backend.Retry(&flaky{Backend: memory.New(), puts: true}, backend.RetryOptions{Attempts: 50, Min: 1, Max: 1})
	})
}

func TestCacheKeepsChecksAndDrops(t *testing.T) {
	mem, dir := memory.New(), t.TempDir()
	opts := backend.CacheOptions{Dir: dir, MaxBytes: 100, Match: func(n string) bool { return n != "live" }}
	open := func() *backend.Cached {
		c, err := backend.Cache(mem, opts)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := open()
	read := func(name string) string {
		data, err := backend.ReadAll(t.Context(), c, name, 1000)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for _, name := range []string{"a", "b", "c", "live"} {
		if err := mem.Put(t.Context(), name, strings.NewReader(strings.Repeat(name, 30)), int64(30*len(name))); err != nil {
			t.Fatal(err)
		}
		read(name)
		read(name)
	}
	if st := c.Stats(); st.Hits != 3 || st.Misses != 3 || st.Evicted != 1 || st.Bytes != 68 {
		t.Errorf("34 bytes thrice into 100, each read twice: %+v", st)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.cached"))
	if err != nil || len(files) != 2 {
		t.Fatalf("cached files: %v, %v", files, err)
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte(strings.Repeat("?", 34)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c = open() // takes over what is there
	if st := c.Stats(); st.Bytes != 68 {
		t.Errorf("reopened: %+v", st)
	}
	if got := read("c"); got != strings.Repeat("c", 30) {
		t.Errorf("read %q", got)
	}
	if st := c.Stats(); st.Damaged != 1 || st.Misses != 1 {
		t.Errorf("after damage: %+v", st)
	}
	opts.MaxBytes = 10
	if st := open().Stats(); st.Bytes != 0 {
		t.Errorf("reopened with a smaller limit: %+v", st)
	}
}

// counting notes how many calls are under way at once.
type counting struct {
	backend.Backend
	now, most atomic.Int64
}

func (c *counting) Stat(ctx context.Context, name string) (backend.Info, error) {
	n := c.now.Add(1)
	defer c.now.Add(-1)
	for most := c.most.Load(); n > most && !c.most.CompareAndSwap(most, n); most = c.most.Load() {
	}
	return c.Backend.Stat(ctx, name)
}

func TestLimitBoundsCalls(t *testing.T) {
	c := &counting{Backend: memory.New()}
	b := backend.Limit(c, backend.LimitOptions{Calls: 2})
	done := make(chan struct{})
	for range 50 {
		go func() { b.Stat(t.Context(), "x"); done <- struct{}{} }()
	}
	for range 50 {
		<-done
	}
	if most := c.most.Load(); most > 2 {
		t.Errorf("%d calls at once, allowed are 2", most)
	}
	if err := b.Put(t.Context(), "x", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	for range 2 { // hold both places by open readers
		rc, err := b.Get(t.Context(), "x", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Stat(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a place: %v", err)
	}
}
