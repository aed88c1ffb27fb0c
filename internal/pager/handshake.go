package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a handshake; what is beyond is refused before it is worked on.
const (
	MaxRegions       = 1024
	MaxMemory        = 1 << 40 // bytes of all regions together
	maxHandshakeSize = 256 << 10
	maxAddress       = 1 << 57
	maxOffset        = 1 << 52
	maxDescriptors   = 4
)

// Page sizes that are served, in bytes.
const (
	PageSize     = 4 << 10
	HugePageSize = 2 << 20
)

// Region is a range of a process's memory and where its content lies in the
// source. All fields are in bytes.
type Region struct {
	Base     uint64
	Size     uint64
	Offset   uint64
	PageSize uint64
}

// wireRegion is Firecracker's form. Its older releases say page_size_kib, some
// with KiB and some with bytes in it; the two cannot be mixed up.
type wireRegion struct {
	Base        uint64 `json:"base_host_virt_addr"`
	Size        uint64 `json:"size"`
	Offset      uint64 `json:"offset"`
	PageSize    uint64 `json:"page_size,omitempty"`
	PageSizeKiB uint64 `json:"page_size_kib,omitempty"`
}

// ParseRegions decodes and validates the handshake's JSON.
func ParseRegions(data []byte) ([]Region, error) {
	if len(data) > maxHandshakeSize {
		return nil, fmt.Errorf("handshake of %d bytes, at most %d", len(data), maxHandshakeSize)
	}
	var wire []wireRegion
	if err := json.Unmarshal(data, &wire); err != nil {
		return nil, fmt.Errorf("handshake is not a JSON array of regions: %w", err)
	}
	if len(wire) > MaxRegions {
		return nil, fmt.Errorf("handshake has %d regions, at most %d", len(wire), MaxRegions)
	}
	regions := make([]Region, len(wire))
	for i, w := range wire {
		size, err := w.pageSize()
		if err != nil {
			return nil, fmt.Errorf("region %d: %w", i, err)
		}
		regions[i] = Region{Base: w.Base, Size: w.Size, Offset: w.Offset, PageSize: size}
	}
	return regions, ValidateRegions(regions)
}

func (w wireRegion) pageSize() (uint64, error) {
	switch {
	case w.PageSize != 0:
		return w.PageSize, nil
	case w.PageSizeKiB == 0:
		return PageSize, nil
	}
	switch w.PageSizeKiB {
	case PageSize, HugePageSize:
		return w.PageSizeKiB, nil
	case PageSize >> 10, HugePageSize >> 10:
		return w.PageSizeKiB << 10, nil
	}
	return 0, fmt.Errorf("page_size_kib %d is neither 4 KiB nor 2 MiB", w.PageSizeKiB)
}

// ValidateRegions checks sizes, alignment, bounds, one page size for all, and
// that neither addresses nor offsets overlap.
func ValidateRegions(regions []Region) error {
	if len(regions) == 0 || len(regions) > MaxRegions {
		return fmt.Errorf("%d regions, must be 1 to %d", len(regions), MaxRegions)
	}
	var total uint64
	for i, r := range regions {
		switch {
		case r.PageSize != PageSize && r.PageSize != HugePageSize:
			return fmt.Errorf("region %d: page size %d is neither %d nor %d", i, r.PageSize, PageSize, HugePageSize)
		case r.PageSize != regions[0].PageSize:
			return fmt.Errorf("region %d: page size %d, but region 0 has %d", i, r.PageSize, regions[0].PageSize)
		case r.Size == 0 || r.Size > MaxMemory || r.Size%r.PageSize != 0:
			return fmt.Errorf("region %d: size %#x must be a multiple of the page size, at most %#x", i, r.Size, uint64(MaxMemory))
		case r.Base == 0 || r.Base > maxAddress-r.Size || r.Base%r.PageSize != 0:
			return fmt.Errorf("region %d: address %#x must be a multiple of the page size within user space", i, r.Base)
		case r.Offset > maxOffset-r.Size || r.Offset%r.PageSize != 0:
			return fmt.Errorf("region %d: offset %#x must be a multiple of the page size, at most %#x", i, r.Offset, uint64(maxOffset))
		}
		if total += r.Size; total > MaxMemory {
			return fmt.Errorf("regions sum up to more than %#x bytes", uint64(MaxMemory))
		}
	}
	if err := overlap(regions, "address", func(r Region) uint64 { return r.Base }); err != nil {
		return err
	}
	return overlap(regions, "offset", func(r Region) uint64 { return r.Offset })
}

func overlap(regions []Region, what string, start func(Region) uint64) error {
	sorted := sortedBy(regions, start)
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; start(a)+a.Size > start(b) {
			return fmt.Errorf("regions overlap at %s %#x", what, start(b))
		}
	}
	return nil
}

func sortedBy(regions []Region, key func(Region) uint64) []Region {
	sorted := slices.Clone(regions)
	slices.SortFunc(sorted, func(a, b Region) int {
		switch ka, kb := key(a), key(b); {
		case ka < kb:
			return -1
		case ka > kb:
			return 1
		}
		return 0
	})
	return sorted
}

// Handshake is what a process hands over to be served.
type Handshake struct {
	UFFD    *UFFD
	Regions []Region
	// Process is a pidfd of the process at the socket's other end.
	Process int
}

// Close closes both descriptors of a handshake that no Server took.
func (h *Handshake) Close() error {
	return errors.Join(h.UFFD.Close(), unix.Close(h.Process))
}

// SendHandshake is the other side: it hands u and its regions to a server. The
// sender keeps its own copy of the descriptor open, so that a server's sudden
// death leaves it waiting instead of reading zeros, and ends when the
// connection does.
func SendHandshake(ctx context.Context, conn *net.UnixConn, u *UFFD, regions []Region) error {
	if err := ValidateRegions(regions); err != nil {
		return fmt.Errorf("userfaultfd handshake: %w", err)
	}
	wire := make([]wireRegion, len(regions))
	for i, r := range regions {
		wire[i] = wireRegion{Base: r.Base, Size: r.Size, Offset: r.Offset, PageSize: r.PageSize}
	}
	data, err := json.Marshal(wire)
	if err != nil {
		return fmt.Errorf("userfaultfd handshake: %w", err)
	}
	defer bindDeadline(ctx, conn)()
	n, _, err := conn.WriteMsgUnix(data, unix.UnixRights(u.fd), nil)
	for err == nil && n < len(data) {
		data = data[n:]
		n, err = conn.Write(data)
	}
	if err != nil {
		return fmt.Errorf("send userfaultfd handshake: %w", errors.Join(err, ctx.Err()))
	}
	return nil
}

// bindDeadline ends the connection's reads and writes with ctx until the
// returned function is called.
func bindDeadline(ctx context.Context, conn *net.UnixConn) func() {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = conn.SetDeadline(time.Time{})
		}
	}
}
