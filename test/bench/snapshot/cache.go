package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapshot"
)

// filesOf lists the files of a snapshot.
func filesOf(i sandbox.Image) ([]string, error) {
	var files []string
	for _, dir := range i.Dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
	}
	if i.WorkingSet != "" {
		files = append(files, i.WorkingSet)
	}
	return files, nil
}

// makeCold writes files to disk and has the kernel forget their content. It
// returns the share of them that is in memory all the same.
func makeCold(files []string) (resident float64, err error) {
	return each(files, func(f *os.File, _ []snapshot.Extent) error {
		if err := f.Sync(); err != nil {
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// makeHot brings files into memory. It returns the share that is there now.
func makeHot(files []string) (resident float64, err error) {
	buf := make([]byte, mib)
	return each(files, func(f *os.File, extents []snapshot.Extent) error {
		for _, e := range extents {
			for off := e.Offset; off < e.End(); off += int64(len(buf)) {
				n := min(int64(len(buf)), e.End()-off)
				if _, err := f.ReadAt(buf[:n], off); err != nil && !errors.Is(err, io.EOF) {
					return err
				}
			}
		}
		return nil
	})
}

// each does something to each file, and counts then which of their pages are
// in memory, holes left out.
func each(files []string, do func(*os.File, []snapshot.Extent) error) (resident float64, err error) {
	var in, all int64
	one := func(path string) (err error) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		extents, err := snapshot.FileExtents(f)
		if err != nil {
			return err
		}
		if err := do(f, extents); err != nil {
			return err
		}
		i, a, err := residency(f, extents)
		in, all = in+i, all+a
		return err
	}
	for _, path := range files {
		if err := one(path); err != nil {
			return 0, fmt.Errorf("page cache of %s: %w", path, err)
		}
	}
	if all == 0 {
		return 0, nil
	}
	return float64(in) / float64(all), nil
}

// residency counts the pages of a file's extents that are in the page cache.
func residency(f *os.File, extents []snapshot.Extent) (in, all int64, err error) {
	page := int64(os.Getpagesize())
	for _, e := range extents {
		begin := e.Offset / page * page
		length := (e.End() - begin + page - 1) / page * page
		if length == 0 {
			continue
		}
		m, err := unix.Mmap(int(f.Fd()), begin, int(length), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0, 0, err
		}
		vec := make([]byte, length/page)
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(length), uintptr(unsafe.Pointer(&vec[0])))
		if err := unix.Munmap(m); err != nil {
			return 0, 0, err
		}
		if errno != 0 {
			return 0, 0, fmt.Errorf("mincore: %w", errno)
		}
		for _, v := range vec {
			in += int64(v & 1)
		}
		all += int64(len(vec))
	}
	return in, all, nil
}

// diskBytes is the space that files take.
func diskBytes(files []string) (int64, error) {
	var sum int64
	for _, path := range files {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return 0, err
		}
		sum += st.Blocks * 512
	}
	return sum, nil
}
