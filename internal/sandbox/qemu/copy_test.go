package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

// cancels ends a context at the first read: the copying of memory, during
// which a machine stands still, must end with it.
type cancels struct {
	cancel func()
	reads  int
}

func (c *cancels) ReadAt(p []byte, _ int64) (int, error) {
	c.cancel()
	c.reads++
	clear(p)
	return len(p), nil
}

func (c *cancels) Zero(int64, int64) bool { return false }
func (c *cancels) Size() int64            { return 8 * copyChunk }

func TestCopyEndsWithContext(t *testing.T) {
	t.Parallel()
	// Memory of this process stands for a machine's.
	const size = 8 * copyChunk
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m) //nolint:errcheck // the test's
	for i := 0; i < size; i += pageSize {
		m[i] = 1
	}
	r := &ram{pid: os.Getpid(), start: uintptr(unsafe.Pointer(&m[0])), size: size}
	shared, err := newMemory(size)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	if _, err := shared.Write(m); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(context.Context, *cancels, *os.File) error{
		"changed": func(ctx context.Context, c *cancels, to *os.File) error { return r.copyChanged(ctx, to, c) },
		"whole":   func(ctx context.Context, c *cancels, to *os.File) error { return r.copyWhole(ctx, to, c) },
		"shared": func(ctx context.Context, c *cancels, to *os.File) error {
			c.cancel()
			return copyShared(ctx, to, shared, size)
		},
	} {
		to, err := os.Create(filepath.Join(t.TempDir(), "memory"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		c := &cancels{cancel: cancel}
		if err := f(ctx, c, to); !errors.Is(err, context.Canceled) || c.reads > 1 {
			t.Errorf("%s: %v after %d pieces", name, err, c.reads)
		}
		if err := to.Close(); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

var _ pager.Source = (*cancels)(nil)

// stuck is a file on a disk that does not answer.
type stuck struct{ release chan struct{} }

func (s stuck) Sync() error  { <-s.release; return nil }
func (s stuck) Close() error { return nil }

func TestSyncEndsWithContext(t *testing.T) {
	t.Parallel()
	s := stuck{make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := syncAndClose(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("a disk that does not answer: %v", err)
	}
	close(s.release)
	if err := syncAndClose(t.Context(), s); err != nil {
		t.Errorf("a disk that does: %v", err)
	}
}
