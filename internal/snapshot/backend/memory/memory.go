// Package memory is a backend that keeps its objects in memory: for tests, and
// for stores that may be forgotten.
package memory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/snapshot/backend"
)

// Backend keeps objects in a map.
type Backend struct {
	mu      sync.RWMutex
	objects map[string]object
}

type object struct {
	data     []byte
	modified time.Time
}

var _ backend.Backend = (*Backend)(nil)

// New makes an empty backend.
func New() *Backend { return &Backend{objects: map[string]object{}} }

// Put implements backend.Backend.
func (b *Backend) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if size < 1 {
		return fmt.Errorf("%w: %s: %d bytes", backend.ErrSize, name, size)
	}
	var buf bytes.Buffer
	buf.Grow(int(min(size, 4<<20)))
	if _, err := io.Copy(&buf, backend.SizedReader(ctx, name, r, size)); err != nil {
		return fmt.Errorf("putting object %s: %w", name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.objects[name]; ok {
		return fmt.Errorf("putting object %s: %w", name, backend.ErrExist)
	}
	b.objects[name] = object{data: buf.Bytes(), modified: time.Now()}
	return nil
}

func (b *Backend) find(ctx context.Context, name string) (object, error) {
	if err := backend.CheckName(name); err != nil {
		return object{}, err
	}
	if err := context.Cause(ctx); err != nil {
		return object{}, err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	o, ok := b.objects[name]
	if !ok {
		return object{}, fmt.Errorf("object %s: %w", name, backend.ErrNotExist)
	}
	return o, nil
}

// Get implements backend.Backend.
func (b *Backend) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	o, err := b.find(ctx, name)
	if err != nil {
		return nil, err
	}
	n, err := backend.CheckRange(name, int64(len(o.data)), offset, length)
	if err != nil {
		return nil, err
	}
	rc := io.NopCloser(bytes.NewReader(o.data[offset : offset+n]))
	return backend.ExactReader(ctx, rc, n), nil
}

// Stat implements backend.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (backend.Info, error) {
	o, err := b.find(ctx, name)
	if err != nil {
		return backend.Info{}, err
	}
	return backend.Info{Name: name, Size: int64(len(o.data)), Modified: o.modified}, nil
}

// List implements backend.Backend.
func (b *Backend) List(ctx context.Context, prefix string, fn func(backend.Info) error) error {
	if err := backend.CheckPrefix(prefix); err != nil {
		return err
	}
	var found []backend.Info
	b.mu.RLock()
	for name, o := range b.objects {
		if strings.HasPrefix(name, prefix) {
			found = append(found, backend.Info{Name: name, Size: int64(len(o.data)), Modified: o.modified})
		}
	}
	b.mu.RUnlock()
	for _, info := range found {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Delete implements backend.Backend.
func (b *Backend) Delete(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, name)
	return nil
}
