package microvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/sandbox/microvm/guestkernel"
	"github.com/skep-dev/skep/internal/sandbox/microvm/initramfs"
)

// BootFiles makes the files that all machines boot from, and keeps them in a
// folder.
type BootFiles struct {
	Dir     string // made if missing
	Kernel  guestkernel.Kernel
	Agent   []byte   // the program skep-agent
	Modules []string // of the kernel's, by name, that the agent loads
	Log     *slog.Logger

	preparing chan struct{} // lock of the rest
	ready     bool
	vmlinux   string
	initrd    string
}

// NewBootFiles copies b and makes it ready for use.
func NewBootFiles(b BootFiles) *BootFiles {
	b.preparing = make(chan struct{}, 1)
	return &b
}

// Prepare returns the paths of an uncompressed kernel and an initramfs, which
// it makes unless they are there: the names hold digests of everything that
// goes into them.
func (b *BootFiles) Prepare(ctx context.Context) (kernel, initrd string, err error) {
	if err := Lock(ctx, b.preparing); err != nil {
		return "", "", err
	}
	defer Unlock(b.preparing)
	if b.ready {
		return b.vmlinux, b.initrd, nil
	}
	if err := os.MkdirAll(b.Dir, 0o755); err != nil {
		return "", "", fmt.Errorf("cache dir: %w", err)
	}
	if err := b.build(); err != nil {
		return "", "", err
	}
	b.ready = true
	return b.vmlinux, b.initrd, nil
}

// Digests identify the kernel and the agent that machines boot from.
func (b *BootFiles) Digests(ctx context.Context) (kernel, agent string, err error) {
	path, _, err := b.Prepare(ctx)
	if err != nil {
		return "", "", err
	}
	sum := sha256.Sum256(b.Agent)
	return filepath.Base(path), hex.EncodeToString(sum[:]), nil
}

func (b *BootFiles) build() error {
	image, err := os.ReadFile(b.Kernel.Image)
	if err != nil {
		return fmt.Errorf("guest kernel: %w", err)
	}
	b.vmlinux, err = b.cached("vmlinux", func() ([]byte, error) {
		k, err := guestkernel.Unpack(image)
		if err != nil {
			return nil, fmt.Errorf("guest kernel %s: %w", b.Kernel.Image, err)
		}
		return k, nil
	}, image)
	if err != nil {
		return err
	}
	parts := [][]byte{image, b.Agent}
	var mods *initramfs.Modules
	var order []string
	if b.Kernel.Modules != "" {
		if mods, err = initramfs.ReadModules(b.Kernel.Modules); err != nil {
			return err
		}
		if order, err = mods.Order(b.Modules...); err != nil {
			return err
		}
		// Modules may be rebuilt for the same kernel.
		for _, m := range order {
			content, err := mods.Read(m)
			if err != nil {
				return err
			}
			parts = append(parts, content)
		}
	}
	b.initrd, err = b.cached("initramfs", func() ([]byte, error) {
		var buf bytes.Buffer
		err := initramfs.Build(&buf, b.Agent, mods, order)
		return buf.Bytes(), err
	}, parts...)
	return err
}

// cached returns the path of a file in the folder and makes it if necessary.
// It appears there complete or not at all.
func (b *BootFiles) cached(name string, content func() ([]byte, error), key ...[]byte) (string, error) {
	h := sha256.New()
	for _, k := range key {
		sum := sha256.Sum256(k)
		h.Write(sum[:])
	}
	path := filepath.Join(b.Dir, name+"-"+hex.EncodeToString(h.Sum(nil)[:16]))
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	text, err := content()
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(b.Dir, "."+name+"-")
	if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	_, err = f.Write(text)
	if err == nil {
		// The monitor reads it as a user of its own.
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
	if b.Log != nil {
		b.Log.Debug("made a file for guests", "path", path, "bytes", len(text))
	}
	return path, nil
}
