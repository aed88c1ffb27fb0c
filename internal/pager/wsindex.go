package pager

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// A working-set file is, little endian:
//
//	  0  magic, 8 bytes
//	  8  version, page size, runs, chunks: 4 bytes each
//	 24  offset and size of the data, 8 bytes each
//	 40  SHA-256 of the data
//	 72  SHA-256 of bytes 0-72 and of the tables
//	104  zeros up to 128
//	128  runs: first page (8 bytes), pages (4), flags (4; 1: all zeros)
//	     chunks: CRC-32C of every chunk of the data, 4 bytes each
//	     zeros up to a multiple of 4096
//	     data: the pages of all runs that are not zero, in order of the runs
//
// A chunk's sum is checked before its first page is installed; the SHA-256 of the
// data names it and is checked by Verify.
const (
	wsMagic      = "SKEPWSET"
	wsVersion    = 1
	wsHeader     = 128
	wsSummed     = 72
	wsSumEnd     = wsSummed + sha256.Size
	wsRunSize    = 16
	wsFlagZero   = 1
	wsAlign      = 4096
	wsChunk      = 1 << 20
	maxWSPages   = 16 << 20 // 64 GiB of small pages
	maxWSRuns    = maxWSPages
	maxWSIndex   = wsHeader + maxWSRuns*wsRunSize
	maxPageIndex = maxOffset / PageSize
)

// ErrDamaged is wrapped by errors about a working-set file that is truncated,
// changed, or not one at all.
var ErrDamaged = errors.New("damaged working set")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Run is consecutive pages of the image, touched one after the other.
type Run struct {
	Page  uint64
	Count uint32
	Zero  bool
}

// wsIndex is the decoded head of a working-set file.
type wsIndex struct {
	pageSize   int
	runs       []Run
	sums       []uint32
	dataOffset int64
	dataSize   int64
	digest     [sha256.Size]byte
}

func chunkSize(pageSize int) int { return max(wsChunk, pageSize) }

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

func (x *wsIndex) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, wsHeader+len(x.runs)*wsRunSize+4*len(x.sums))
	b = append(b, wsMagic...)
	b = le.AppendUint32(b, wsVersion)
	b = le.AppendUint32(b, uint32(x.pageSize))
	b = le.AppendUint32(b, uint32(len(x.runs)))
	b = le.AppendUint32(b, uint32(len(x.sums)))
	b = le.AppendUint64(b, uint64(x.dataOffset))
	b = le.AppendUint64(b, uint64(x.dataSize))
	b = append(b, x.digest[:]...)
	b = append(b, make([]byte, wsHeader-wsSummed)...)
	for _, r := range x.runs {
		var flags uint32
		if r.Zero {
			flags = wsFlagZero
		}
		b = le.AppendUint64(b, r.Page)
		b = le.AppendUint32(b, r.Count)
		b = le.AppendUint32(b, flags)
	}
	for _, s := range x.sums {
		b = le.AppendUint32(b, s)
	}
	sum := indexSum(b)
	copy(b[wsSummed:], sum[:])
	return b
}

func indexSum(b []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(b[:wsSummed])
	h.Write(b[wsHeader:])
	return [sha256.Size]byte(h.Sum(nil))
}

// indexLength reads the header and says how long header and tables are; only
// then memory is taken for them.
func indexLength(header []byte, fileSize int64) (int64, error) {
	le := binary.LittleEndian
	switch {
	case len(header) < wsHeader:
		return 0, fmt.Errorf("%w: header of %d bytes", ErrDamaged, len(header))
	case string(header[:8]) != wsMagic:
		return 0, fmt.Errorf("%w: magic %q", ErrDamaged, header[:8])
	case le.Uint32(header[8:]) != wsVersion:
		return 0, fmt.Errorf("%w: version %d, this program reads %d", ErrDamaged, le.Uint32(header[8:]), wsVersion)
	}
	runs, chunks := int64(le.Uint32(header[16:])), int64(le.Uint32(header[20:]))
	length := wsHeader + runs*wsRunSize + chunks*4
	if runs > maxWSRuns || length > fileSize {
		return 0, fmt.Errorf("%w: index of %d bytes in a file of %d", ErrDamaged, length, fileSize)
	}
	return length, nil
}

// decodeIndex checks and decodes header and tables; b is as long as
// indexLength said.
func decodeIndex(b []byte, fileSize int64) (*wsIndex, error) {
	length, err := indexLength(b, fileSize)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != length {
		return nil, fmt.Errorf("%w: index of %d bytes, got %d", ErrDamaged, length, len(b))
	}
	if sum := indexSum(b); !bytes.Equal(sum[:], b[wsSummed:wsSumEnd]) || !allZero(b[wsSumEnd:wsHeader]) {
		return nil, fmt.Errorf("%w: index checksum", ErrDamaged)
	}
	le := binary.LittleEndian
	x := &wsIndex{
		pageSize:   int(le.Uint32(b[12:])),
		runs:       make([]Run, le.Uint32(b[16:])),
		sums:       make([]uint32, le.Uint32(b[20:])),
		dataOffset: int64(le.Uint64(b[24:])),
		dataSize:   int64(le.Uint64(b[32:])),
		digest:     [sha256.Size]byte(b[40:wsSummed]),
	}
	tables := b[wsHeader:]
	for i := range x.runs {
		r := tables[i*wsRunSize:]
		x.runs[i] = Run{Page: le.Uint64(r), Count: le.Uint32(r[8:]), Zero: le.Uint32(r[12:]) == wsFlagZero}
		if le.Uint32(r[12:]) > wsFlagZero {
			return nil, fmt.Errorf("%w: run %d has unknown flags", ErrDamaged, i)
		}
	}
	tables = tables[len(x.runs)*wsRunSize:]
	for i := range x.sums {
		x.sums[i] = le.Uint32(tables[4*i:])
	}
	if err := x.check(length, fileSize); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return x, nil
}

// check looks for contradictions that a right checksum does not rule out.
func (x *wsIndex) check(length, fileSize int64) error {
	if x.pageSize != PageSize && x.pageSize != HugePageSize {
		return fmt.Errorf("page size %d", x.pageSize)
	}
	var pages, content uint64
	for i, r := range x.runs {
		if r.Count == 0 || r.Page > maxPageIndex || uint64(r.Count) > maxPageIndex-r.Page {
			return fmt.Errorf("run %d is %+v", i, r)
		}
		pages += uint64(r.Count)
		if !r.Zero {
			content += uint64(r.Count)
		}
		if pages > maxWSPages {
			return fmt.Errorf("more than %d pages", maxWSPages)
		}
	}
	sorted := slices.Clone(x.runs)
	slices.SortFunc(sorted, func(a, b Run) int {
		if a.Page < b.Page {
			return -1
		}
		return 1
	})
	for i := 1; i < len(sorted); i++ {
		if a := sorted[i-1]; a.Page+uint64(a.Count) > sorted[i].Page {
			return fmt.Errorf("page %d is in two runs", sorted[i].Page)
		}
	}
	size := int64(content) * int64(x.pageSize)
	chunks := roundUp(size, int64(chunkSize(x.pageSize))) / int64(chunkSize(x.pageSize))
	switch {
	case x.dataOffset != roundUp(length, wsAlign):
		return fmt.Errorf("data at %d, index ends at %d", x.dataOffset, length)
	case x.dataSize != size || fileSize != x.dataOffset+size:
		return fmt.Errorf("%d bytes of data in a file of %d, the runs have %d", x.dataSize, fileSize, size)
	case int64(len(x.sums)) != chunks:
		return fmt.Errorf("%d chunk sums, must be %d", len(x.sums), chunks)
	}
	return nil
}

func (x *wsIndex) pages() (all, zero int) {
	for _, r := range x.runs {
		all += int(r.Count)
		if r.Zero {
			zero += int(r.Count)
		}
	}
	return all, zero
}
