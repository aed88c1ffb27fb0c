package pager

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// WriteWorkingSet writes the file at path anew: rec's pages with their content
// from src. Either the whole file appears, on disk, or none; an older one
// stays readable for those who have it open.
func WriteWorkingSet(ctx context.Context, path string, rec Recording, src Source) (err error) {
	fail := func(err error) error { return fmt.Errorf("write working set %s: %w", path, err) }
	x, err := planRuns(ctx, rec, src)
	if err != nil {
		return fail(err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := writeData(ctx, f, x, src); err != nil {
		return fail(err)
	}
	if _, err := f.WriteAt(x.encode(), 0); err != nil {
		return fail(err)
	}
	if err := errors.Join(f.Sync(), f.Chmod(0o600), f.Close()); err != nil {
		return fail(err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fail(err)
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write working set %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// planRuns groups the recording's pages to runs and finds the zero ones.
func planRuns(ctx context.Context, rec Recording, src Source) (*wsIndex, error) {
	if rec.PageSize != PageSize && rec.PageSize != HugePageSize {
		return nil, fmt.Errorf("page size %d is neither %d nor %d", rec.PageSize, PageSize, HugePageSize)
	}
	if len(rec.Pages) > maxWSPages {
		return nil, fmt.Errorf("%d pages, at most %d", len(rec.Pages), maxWSPages)
	}
	x := &wsIndex{pageSize: rec.PageSize}
	size := int64(rec.PageSize)
	page := make([]byte, size)
	for _, p := range rec.Pages {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if p >= uint64(src.Size()/size) {
			return nil, fmt.Errorf("page %d lies outside the image of %d bytes", p, src.Size())
		}
		zero := src.Zero(int64(p)*size, size)
		if !zero {
			if err := readFull(src, page, int64(p)*size); err != nil {
				return nil, err
			}
			zero = allZero(page)
		}
		if n := len(x.runs); n > 0 && x.runs[n-1].Zero == zero && x.runs[n-1].Page+uint64(x.runs[n-1].Count) == p {
			x.runs[n-1].Count++
		} else {
			x.runs = append(x.runs, Run{Page: p, Count: 1, Zero: zero})
		}
	}
	all, zero := x.pages()
	x.dataSize = int64(all-zero) * size
	chunk := int64(chunkSize(rec.PageSize))
	x.sums = make([]uint32, roundUp(x.dataSize, chunk)/chunk)
	length := int64(wsHeader + len(x.runs)*wsRunSize + 4*len(x.sums))
	x.dataOffset = roundUp(length, wsAlign)
	if err := x.check(length, x.dataOffset+x.dataSize); err != nil {
		return nil, err
	}
	x.sums = x.sums[:0]
	return x, nil
}

// writeData writes the pages and fills in the sums.
func writeData(ctx context.Context, f *os.File, x *wsIndex, src Source) error {
	if err := f.Truncate(x.dataOffset + x.dataSize); err != nil {
		return err
	}
	hash := sha256.New()
	chunk := make([]byte, 0, chunkSize(x.pageSize))
	at := x.dataOffset
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		x.sums = append(x.sums, crc32.Checksum(chunk, castagnoli))
		hash.Write(chunk)
		_, err := f.WriteAt(chunk, at)
		at += int64(len(chunk))
		chunk = chunk[:0]
		return err
	}
	for _, r := range x.runs {
		if r.Zero {
			continue
		}
		off, rest := int64(r.Page)*int64(x.pageSize), int64(r.Count)*int64(x.pageSize)
		for rest > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(int(min(rest, int64(cap(chunk)))), cap(chunk)-len(chunk))
			if err := readFull(src, chunk[len(chunk):len(chunk)+n], off); err != nil {
				return err
			}
			chunk = chunk[:len(chunk)+n]
			off, rest = off+int64(n), rest-int64(n)
			if len(chunk) == cap(chunk) {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	x.digest = [sha256.Size]byte(hash.Sum(nil))
	return nil
}
