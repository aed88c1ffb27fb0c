package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/sandbox/qemu/guestkernel"
	"github.com/skep-dev/skep/internal/sandbox/qemu/initramfs"
)

// guestModules is what the agent needs of the guest's kernel. Virtio devices
// of a microvm are on the memory bus.
var guestModules = []string{"virtio_mmio", "virtio_blk", "virtio_net", "erofs", "overlay"}

// assets are the files that all machines boot from.
type assets struct {
	kernel, initrd string // paths
	kernelDigest   string // of the kernel's image
}

// prepare makes the assets unless they are in the cache, which is keyed by
// everything that goes into them.
func (d *Driver) prepare(ctx context.Context) (assets, error) {
	if err := lock(ctx, d.preparing); err != nil {
		return assets{}, err
	}
	defer unlock(d.preparing)
	if d.assets != nil {
		return *d.assets, nil
	}
	if err := os.MkdirAll(d.cacheDir, 0o755); err != nil {
		return assets{}, fmt.Errorf("qemu: cache dir: %w", err)
	}
	a, err := d.build()
	if err != nil {
		return assets{}, fmt.Errorf("qemu: %w", err)
	}
	d.assets = &a
	return a, nil
}

func (d *Driver) build() (assets, error) {
	image, err := os.ReadFile(d.kernel.Image)
	if err != nil {
		return assets{}, fmt.Errorf("guest kernel: %w", err)
	}
	var a assets
	a.kernel, err = d.cached("vmlinux", func() ([]byte, error) {
		k, err := guestkernel.Unpack(image)
		if err != nil {
			return nil, fmt.Errorf("guest kernel %s: %w", d.kernel.Image, err)
		}
		return k, nil
	}, image)
	if err != nil {
		return a, err
	}
	sum := sha256.Sum256(image)
	a.kernelDigest = hex.EncodeToString(sum[:])
	parts := [][]byte{image, d.agent}
	var mods *initramfs.Modules
	var order []string
	if d.kernel.Modules != "" {
		if mods, err = initramfs.ReadModules(d.kernel.Modules); err != nil {
			return a, err
		}
		if order, err = mods.Order(guestModules...); err != nil {
			return a, err
		}
		// Modules may be rebuilt for the same kernel.
		for _, m := range order {
			b, err := mods.Read(m)
			if err != nil {
				return a, err
			}
			parts = append(parts, b)
		}
	}
	a.initrd, err = d.cached("initramfs", func() ([]byte, error) {
		var buf bytes.Buffer
		err := initramfs.Build(&buf, d.agent, mods, order)
		return buf.Bytes(), err
	}, parts...)
	return a, err
}

// cached returns the path of a file in the cache and makes it if necessary.
// It appears there complete or not at all.
func (d *Driver) cached(name string, content func() ([]byte, error), key ...[]byte) (string, error) {
	h := sha256.New()
	for _, k := range key {
		sum := sha256.Sum256(k)
		h.Write(sum[:])
	}
	path := filepath.Join(d.cacheDir, name+"-"+hex.EncodeToString(h.Sum(nil)[:16]))
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	b, err := content()
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(d.cacheDir, "."+name+"-")
	if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		// QEMU reads it as a user of its own.
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("cache: %w", err), os.Remove(f.Name()))
	}
	d.log.Debug("qemu: made a file for guests", "path", path, "bytes", len(b))
	return path, nil
}

// lock takes a mutex that is a channel, or gives up when ctx ends.
func lock(ctx context.Context, mu chan struct{}) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case mu <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func unlock(mu chan struct{}) { <-mu }
