package erofs

import (
	"errors"
	"fmt"
)

var (
	// ErrLimit: the layers exceed one of the Limits.
	ErrLimit = errors.New("image exceeds a limit")
	// ErrBadLayer: a layer is not a tar stream that an image may contain.
	ErrBadLayer = errors.New("invalid layer")
)

// Limits bound what an image from outside may cost. A zero field means the default.
type Limits struct {
	// Bytes of file content over all layers, sparse files counted in full.
	// Default 16 GiB.
	Bytes int64
	// Files counts tar entries over all layers. Default 2,000,000.
	Files int
	// MetaBytes is the memory for names, symlink targets, extended
	// attributes and tree nodes. Default 1 GiB.
	MetaBytes int64
	// Depth of directories. Default 256.
	Depth int
	// XattrBytes of one file, names included. Default 64 KiB.
	XattrBytes int
}

const (
	maxName   = 255  // bytes of a path component
	maxPath   = 4095 // bytes of a path or symlink target
	nodeBytes = 256  // memory of a tree node, about
)

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = 16 << 30
	}
	if l.Files <= 0 {
		l.Files = 2_000_000
	}
	if l.MetaBytes <= 0 {
		l.MetaBytes = 1 << 30
	}
	if l.Depth <= 0 {
		l.Depth = 256
	}
	if l.XattrBytes <= 0 {
		l.XattrBytes = 64 << 10
	}
	l.XattrBytes = min(l.XattrBytes, maxXattrArea/2)
	return l
}

// usage counts towards Limits.
type usage struct {
	Limits
	bytes int64
	files int
	meta  int64
}

func (u *usage) addFile() error {
	if u.files++; u.files > u.Files {
		return fmt.Errorf("%w: more than %d files", ErrLimit, u.Files)
	}
	return u.addMeta(nodeBytes)
}

func (u *usage) addBytes(n int64) error {
	if n < 0 || n > u.Bytes-u.bytes {
		return fmt.Errorf("%w: more than %d bytes of files", ErrLimit, u.Bytes)
	}
	u.bytes += n
	return nil
}

func (u *usage) addMeta(n int) error {
	if u.meta += int64(n); u.meta > u.MetaBytes {
		return fmt.Errorf("%w: names, links and attributes take more than %d bytes", ErrLimit, u.MetaBytes)
	}
	return nil
}
