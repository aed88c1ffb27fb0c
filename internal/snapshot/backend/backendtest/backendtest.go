// Package backendtest is the suite that every backend passes, bare and behind
// each decorator.
package backendtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Run tests the backend that open makes, fresh and empty for each test, bare
// and decorated.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	for name, decorate := range decorations {
		t.Run(name, func(t *testing.T) {
			for test, fn := range suite {
				t.Run(test, func(t *testing.T) { fn(t, decorate(t, open(t))) })
			}
		})
	}
}

var decorations = map[string]func(t *testing.T, b backend.Backend) backend.Backend{
	"bare": func(_ *testing.T, b backend.Backend) backend.Backend { return b },
	"retry": func(_ *testing.T, b backend.Backend) backend.Backend {
		return backend.Retry(b, backend.RetryOptions{Min: 1, Max: 1})
	},
	"limit": func(_ *testing.T, b backend.Backend) backend.Backend {
		return backend.Limit(b, backend.LimitOptions{Calls: 3, BytesPerSecond: 1 << 32})
	},
	"cache":       func(t *testing.T, b backend.Backend) backend.Backend { return cached(t, b, 1<<20) },
	"small cache": func(t *testing.T, b backend.Backend) backend.Backend { return cached(t, b, 100) },
	"all": func(t *testing.T, b backend.Backend) backend.Backend {
		b = backend.Limit(b, backend.LimitOptions{Calls: 3, BytesPerSecond: 1 << 32})
		return cached(t, backend.Retry(b, backend.RetryOptions{Min: 1, Max: 1}), 1<<20)
	},
}

func cached(t *testing.T, b backend.Backend, limit int64) backend.Backend {
	c, err := backend.Cache(b, backend.CacheOptions{Dir: t.TempDir(), MaxBytes: limit})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var suite = map[string]func(t *testing.T, b backend.Backend){
	"ranges": ranges, "write once": writeOnce, "wrong size": wrongSize, "absent": absent,
	"names": names, "list": list, "delete": del, "concurrent": concurrent, "cancelled": cancelled,
	"failing source": failingSource,
}

func put(t *testing.T, b backend.Backend, name, data string) {
	t.Helper()
	if err := b.Put(t.Context(), name, strings.NewReader(data), int64(len(data))); err != nil {
		t.Fatalf("Put(%s): %v", name, err)
	}
}

func get(b backend.Backend, name string, off, n int64) (string, error) {
	rc, err := b.Get(context.Background(), name, off, n)
	if err != nil {
		return "", err
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	return string(data), err
}

func ranges(t *testing.T, b backend.Backend) {
	big := make([]byte, 300<<10)
	rand.Read(big)
	put(t, b, "a/text", "0123456789")
	put(t, b, "a/big", string(big))
	for _, c := range []struct {
		name     string
		off, len int64
		want     string
		err      error
	}{
		{"a/text", 0, -1, "0123456789", nil}, {"a/text", 0, 10, "0123456789", nil}, {"a/text", 3, 4, "3456", nil},
		{"a/text", 9, 1, "9", nil}, {"a/text", 4, -1, "456789", nil}, {"a/text", 10, -1, "", nil}, {"a/text", 5, 0, "", nil},
		{"a/big", 0, -1, string(big), nil}, {"a/big", 100_000, 100_000, string(big[100_000:200_000]), nil},
		{"a/text", 0, 11, "", backend.ErrRange}, {"a/text", 11, 0, "", backend.ErrRange}, {"a/text", 11, -1, "", backend.ErrRange},
		{"a/text", -1, 2, "", backend.ErrRange}, {"a/text", 8, 3, "", backend.ErrRange},
	} {
		got, err := get(b, c.name, c.off, c.len)
		if c.err != nil {
			if !errors.Is(err, c.err) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("Get(%s, %d, %d): error %v, want %v", c.name, c.off, c.len, err, c.err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("Get(%s, %d, %d) = %d bytes, %v; want %d", c.name, c.off, c.len, len(got), err, len(c.want))
		}
	}
	info, err := b.Stat(t.Context(), "a/big")
	if err != nil || info.Size != int64(len(big)) || info.Name != "a/big" {
		t.Errorf("Stat = %+v, %v", info, err)
	}
}

func writeOnce(t *testing.T, b backend.Backend) {
	put(t, b, "once", "first")
	err := b.Put(t.Context(), "once", strings.NewReader("second!"), 7)
	if !errors.Is(err, backend.ErrExist) {
		t.Errorf("second Put: %v, want ErrExist", err)
	}
	if got, err := get(b, "once", 0, -1); got != "first" || err != nil {
		t.Errorf("after a second Put: %q, %v", got, err)
	}
}

func wrongSize(t *testing.T, b backend.Backend) {
	for _, c := range []struct {
		data string
		size int64
	}{{"four", 3}, {"four", 5}, {"", 1}, {"", 0}, {"x", 0}, {"x", -1}, {strings.Repeat("long", 20_000), 70_000}} {
		err := b.Put(t.Context(), "sized", iotest.OneByteReader(strings.NewReader(c.data)), c.size)
		if !errors.Is(err, backend.ErrSize) {
			t.Errorf("Put of %d bytes as %d: %v, want ErrSize", len(c.data), c.size, err)
		}
		if _, err := b.Stat(t.Context(), "sized"); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("Put of %d bytes as %d left something: %v", len(c.data), c.size, err)
		}
	}
}

func failingSource(t *testing.T, b backend.Backend) {
	bad := errors.New("source broke")
	src := io.MultiReader(strings.NewReader("some"), iotest.ErrReader(bad))
	if err := b.Put(t.Context(), "broken", src, 10); !errors.Is(err, bad) {
		t.Errorf("Put from a failing source: %v, want %v", err, bad)
	}
	if _, err := b.Stat(t.Context(), "broken"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("it left something: %v", err)
	}
}

func absent(t *testing.T, b backend.Backend) {
	if _, err := b.Stat(t.Context(), "no/such"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
	for _, n := range []int64{-1, 0, 1} {
		if _, err := get(b, "no/such", 0, n); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("Get of %d bytes: %v", n, err)
		}
	}
	put(t, b, "no", "a name that is also a folder's")
	put(t, b, "no/such", "x")
}

func names(t *testing.T, b backend.Backend) {
	for _, name := range []string{"", "/", "a/", "/a", "a//b", "..", "a/../b", ".hidden", "A", "a b", "ä", "a\x00", strings.Repeat("x", 256)} {
		if err := b.Put(t.Context(), name, strings.NewReader("x"), 1); !errors.Is(err, backend.ErrName) {
			t.Errorf("Put(%q): %v, want ErrName", name, err)
		}
		if _, err := b.Get(t.Context(), name, 0, 1); !errors.Is(err, backend.ErrName) {
			t.Errorf("Get(%q): %v, want ErrName", name, err)
		}
		if _, err := b.Stat(t.Context(), name); !errors.Is(err, backend.ErrName) {
			t.Errorf("Stat(%q): %v, want ErrName", name, err)
		}
		if err := b.Delete(t.Context(), name); !errors.Is(err, backend.ErrName) {
			t.Errorf("Delete(%q): %v, want ErrName", name, err)
		}
	}
	if err := b.List(t.Context(), "../", func(backend.Info) error { return nil }); !errors.Is(err, backend.ErrName) {
		t.Errorf("List(../): %v", err)
	}
	put(t, b, "a/"+strings.Repeat("y", 200), "long")
}

func list(t *testing.T, b backend.Backend) {
	all := []string{"a", "a/b/c", "ab/c", "b/1", "b/2", "b/22"}
	for _, n := range all {
		put(t, b, n, n)
	}
	for prefix, want := range map[string][]string{
		"": all, "a": all[:3], "a/": {"a/b/c"}, "b/2": {"b/2", "b/22"}, "b/": {"b/1", "b/2", "b/22"}, "zz/": nil, "b/2/": nil,
	} {
		var got []string
		err := b.List(t.Context(), prefix, func(i backend.Info) error {
			if i.Size != int64(len(i.Name)) {
				t.Errorf("List: %+v", i)
			}
			got = append(got, i.Name)
			_, err := b.Stat(t.Context(), i.Name) // fn may call the backend
			return err
		})
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("List(%q) = %v, %v; want %v", prefix, got, err, want)
		}
	}
	stop := errors.New("enough")
	calls := 0
	err := b.List(t.Context(), "b/", func(backend.Info) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("stopping List: %v after %d calls", err, calls)
	}
}

func del(t *testing.T, b backend.Backend) {
	for _, data := range []string{"one", "another"} { // deleted names are free again
		put(t, b, "d/x", data)
		if got, err := get(b, "d/x", 0, -1); got != data || err != nil {
			t.Errorf("Get = %q, %v; want %q", got, err, data)
		}
		for range 2 {
			if err := b.Delete(t.Context(), "d/x"); err != nil {
				t.Errorf("Delete: %v", err)
			}
		}
		if _, err := get(b, "d/x", 0, -1); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("Get after Delete: %v", err)
		}
	}
}

func concurrent(t *testing.T, b backend.Backend) {
	const writers = 8
	var won atomic.Int32
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			data := bytes.Repeat([]byte{byte('a' + w)}, 64<<10)
			switch err := b.Put(t.Context(), "race/one", bytes.NewReader(data), int64(len(data))); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, backend.ErrExist):
				t.Errorf("racing Put: %v", err)
			}
			put(t, b, fmt.Sprintf("race/own-%d", w), string(data))
			got, err := get(b, "race/one", 0, -1)
			if err != nil || len(got) != len(data) || strings.Trim(got, got[:1]) != "" {
				t.Errorf("read %d mixed bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of the racing Puts won, want 1", won.Load())
	}
}

func cancelled(t *testing.T, b backend.Backend) {
	put(t, b, "kept", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Put(ctx, "c", strings.NewReader("x"), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Put: %v", err)
	}
	if _, err := b.Stat(t.Context(), "c"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("a cancelled Put left something: %v", err)
	}
	if _, err := b.Stat(ctx, "kept"); !errors.Is(err, context.Canceled) {
		t.Errorf("Stat: %v", err)
	}
	if err := b.List(ctx, "", func(backend.Info) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("List: %v", err)
	}
	if err := b.Delete(ctx, "kept"); !errors.Is(err, context.Canceled) {
		t.Errorf("Delete: %v", err)
	}
}
