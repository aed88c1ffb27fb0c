package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/singleflight"
)

// CacheOptions describe a cache folder.
type CacheOptions struct {
	Dir       string // made when missing; one process at a time may use it
	MaxBytes  int64  // of all cached objects together
	MaxObject int64  // larger objects are passed through; default 16 MiB
	// Match says which names are cached; nil means all. Only such names may be
	// cached as nobody else deletes and puts anew with other contents.
	Match func(name string) bool
}

// Cached is a backend with a cache before it.
type Cached struct {
	Backend
	opts  CacheOptions
	files *cacheFiles
	fetch singleflight.Group
}

// CacheStats counts since the cache was opened.
type CacheStats struct {
	Hits, Misses, Damaged, Evicted int64
	Bytes                          int64 // held now
}

// Cache keeps whole objects that were got from b or put into it in a local
// folder, drops the least recently used beyond MaxBytes, and checks every
// object (CRC-32C) each time it is read: a damaged one is fetched anew. Stat
// and List always ask b.
func Cache(b Backend, opts CacheOptions) (*Cached, error) {
	if opts.MaxObject <= 0 {
		opts.MaxObject = 16 << 20
	}
	opts.MaxObject = min(opts.MaxObject, opts.MaxBytes)
	if opts.Match == nil {
		opts.Match = func(string) bool { return true }
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the cache folder: %w", err)
	}
	files, err := openCacheFiles(opts.Dir, opts.MaxBytes)
	if err != nil {
		return nil, err
	}
	return &Cached{Backend: b, opts: opts, files: files}, nil
}

// Stats returns the counts so far.
func (c *Cached) Stats() CacheStats { return c.files.snapshot() }

// Put implements Backend. Objects in memory are cached as they pass.
func (c *Cached) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if !c.opts.Match(name) || size > c.opts.MaxObject || size < 0 {
		return c.Backend.Put(ctx, name, r, size)
	}
	var copied bytes.Buffer
	limited := io.LimitReader(r, size+1) // one more, so that ErrSize shows
	if _, err := io.Copy(&copied, limited); err != nil {
		return fmt.Errorf("putting object %s: %w", name, err)
	}
	if err := c.Backend.Put(ctx, name, bytes.NewReader(copied.Bytes()), size); err != nil {
		return err
	}
	c.files.put(name, copied.Bytes())
	return nil
}

// Get implements Backend.
func (c *Cached) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if !c.opts.Match(name) {
		return c.Backend.Get(ctx, name, offset, length)
	}
	if data, ok := c.files.get(name); ok {
		return part(ctx, name, data, offset, length)
	}
	// Several readers of one absent object share one fetch, which outlives the
	// reader that began it only as long as its own ctx does.
	v, err, shared := c.fetch.Do(name, func() (any, error) {
		data, err := ReadAll(ctx, c.Backend, name, c.opts.MaxObject)
		if err == nil {
			c.files.put(name, data)
		}
		return data, err
	})
	switch {
	case err == nil:
		return part(ctx, name, v.([]byte), offset, length)
	case errors.Is(err, ErrSize), shared && ctx.Err() == nil && !errors.Is(err, ErrNotExist):
		// Too large, or the one that fetched for us gave up: go past the cache.
		return c.Backend.Get(ctx, name, offset, length)
	}
	return nil, err
}

func part(ctx context.Context, name string, data []byte, offset, length int64) (io.ReadCloser, error) {
	n, err := CheckRange(name, int64(len(data)), offset, length)
	if err != nil {
		return nil, err
	}
	return ExactReader(ctx, io.NopCloser(bytes.NewReader(data[offset:offset+n])), n), nil
}

// Beneath is the backend that the cache is before.
func (c *Cached) Beneath() Backend { return c.Backend }

// Forget drops what the cache has of an object, which is then got anew.
func (c *Cached) Forget(name string) { c.files.drop(name) }

// Delete implements Backend.
func (c *Cached) Delete(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := c.Backend.Delete(ctx, name); err != nil {
		return err
	}
	c.files.drop(name)
	return nil
}
