package main

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// disk is what a cold page cache costs here.
type disk struct {
	page time.Duration // median of reading 4 KiB somewhere
	rate float64       // bytes a second, one after the other
	fs   string
}

// measureDisk reads a file of its own with a cold page cache.
func measureDisk(dir string) (d disk, err error) {
	path := filepath.Join(dir, "disk")
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	const size = 128 * mib
	buf := make([]byte, mib)
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // only to be incompressible
	f, err := os.Create(path)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for range size / mib {
		for i := range buf {
			buf[i] = byte(rng.Uint32())
		}
		if _, err := f.Write(buf); err != nil {
			return d, err
		}
	}
	if _, err := makeCold([]string{path}); err != nil {
		return d, err
	}
	began := time.Now()
	for off := int64(0); off < size; off += mib {
		if _, err := f.ReadAt(buf, off); err != nil {
			return d, err
		}
	}
	d.rate = size / time.Since(began).Seconds()
	if _, err := makeCold([]string{path}); err != nil {
		return d, err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return d, err
	}
	var took []time.Duration
	for range 200 {
		began := time.Now()
		if _, err := f.ReadAt(buf[:4<<10], rng.Int64N(size/4096)*4096); err != nil {
			return d, err
		}
		took = append(took, time.Since(began))
	}
	d.page = median(took)
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return d, err
	}
	d.fs = map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.TMPFS_MAGIC: "tmpfs (memory: nothing can be cold)"}[st.Type]
	return d, nil
}
