// Package backend is the place where a snapshot store keeps its objects: a
// small contract, decorators that add retries, a cache and limits to any
// implementation of it (this package), and the implementations (folders of
// their own: memory, local, s3). Every one of them, bare and decorated, passes
// the suite in backendtest.
package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Errors that callers tell apart with errors.Is. Every other error is taken
// for a passing failure (network, disk, throttling) and may be tried again.
var (
	// ErrNotExist: no object has this name.
	ErrNotExist = errors.New("object does not exist")
	// ErrExist: the name is taken; what is stored under it was left alone.
	ErrExist = errors.New("object exists already")
	// ErrName: the name breaks the rules of CheckName.
	ErrName = errors.New("object name is not valid")
	// ErrSize: the reader gave more or less than the size that Put was told.
	ErrSize = errors.New("object has another size than announced")
	// ErrRange: Get was asked for bytes that lie outside the object.
	ErrRange = errors.New("range lies outside the object")
)

// Permanent tells whether trying the same call again cannot help.
func Permanent(err error) bool {
	return errors.Is(err, ErrNotExist) || errors.Is(err, ErrExist) || errors.Is(err, ErrName) ||
		errors.Is(err, ErrSize) || errors.Is(err, ErrRange) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// Info describes a stored object.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // by the backend's clock; zero where it has none
}

// Backend keeps immutable objects by name.
//
// Write once: an object appears whole or not at all, and never changes
// afterwards. There is no overwriting; changing means deleting and putting
// under another name.
//
// Retrying: a backend tries each call once and reports what happened; Retry
// decides whether to try again. Every method may be repeated after a failure
// that is not Permanent:
//   - Put may have stored the object although it failed (a lost answer). The
//     repeated Put then says ErrExist. Callers that put different contents
//     under one name must not read that as success; Retry compares sizes.
//   - Get and Stat have no effect, so repeating is free.
//   - List may have called fn for some objects already, and calls it again.
//   - Delete of an absent object succeeds, so repeating is free.
//
// Consistency: after Put returned nil, Get, Stat and List of any client see
// the object; after Delete returned nil, none does. The store's leases rely on
// it. Local file systems and S3 (since 2020) keep this promise.
//
// All methods are safe for concurrent use and give up when ctx ends.
type Backend interface {
	// Put stores size bytes from r under name. It reads r from its current
	// position, exactly to its end. A decorator that must send the bytes
	// twice does so only when r is an io.Seeker. An object has at least one
	// byte, because S3-like stores differ on empty ones. Errors: ErrExist (nothing
	// changed), ErrSize (nothing stored), ErrName.
	Put(ctx context.Context, name string, r io.Reader, size int64) error
	// Get opens length bytes from offset; length < 0 means up to the end.
	// The caller closes the reader. An object shorter than offset+length is
	// an error: ErrRange at once, or a reader that ends with
	// io.ErrUnexpectedEOF. ctx also bounds the reading.
	Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error)
	// Stat describes the object, or says ErrNotExist.
	Stat(ctx context.Context, name string) (Info, error)
	// List calls fn for every object whose name begins with prefix (any
	// text, not only whole folders), in no certain order, and stops at its
	// first error, which it returns. Objects put or deleted meanwhile may be
	// listed or not. fn may call the backend.
	List(ctx context.Context, prefix string, fn func(Info) error) error
	// Delete removes the object; it succeeds when there is none.
	Delete(ctx context.Context, name string) error
}

// MaxName is the longest object name, in bytes.
const MaxName = 255

// CheckName says whether name can be an object's: segments of lower-case
// letters, digits, '.', '_' and '-' that do not begin with a dot, joined by
// single slashes. So a name is safe as a path and as an S3 key alike.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("%w: %d bytes long, allowed are 1 to %d", ErrName, len(name), MaxName)
	}
	for seg := range strings.SplitSeq(name, "/") {
		if seg == "" || seg[0] == '.' {
			return fmt.Errorf("%w: %q has an empty segment or one that begins with a dot", ErrName, name)
		}
	}
	return checkRunes(name)
}

// CheckPrefix is CheckName for the prefix of a List: it may be empty, and may
// end anywhere.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if len(prefix) > MaxName || prefix[0] == '/' || prefix[0] == '.' ||
		strings.Contains(prefix, "//") || strings.Contains(prefix, "/.") {
		return fmt.Errorf("%w: prefix %q", ErrName, prefix)
	}
	return checkRunes(prefix)
}

func checkRunes(name string) error {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' && c != '/' {
			return fmt.Errorf("%w: %q holds the character %q; allowed are a-z 0-9 . _ - /", ErrName, name, c)
		}
	}
	return nil
}

// CheckRange turns Get's offset and length into the bytes to read of an object
// of the given size.
func CheckRange(name string, size, offset, length int64) (int64, error) {
	if length < 0 {
		length = max(size-offset, 0)
	}
	if offset < 0 || offset > size || length > size-offset {
		return 0, fmt.Errorf("%w: %s has %d bytes, asked for %d from %d", ErrRange, name, size, length, offset)
	}
	return length, nil
}

// ReadAll reads a whole object of at most limit bytes.
func ReadAll(ctx context.Context, b Backend, name string, limit int64) ([]byte, error) {
	info, err := b.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, allowed are %d", ErrSize, name, info.Size, limit)
	}
	return ReadSized(ctx, b, name, info.Size)
}

// ReadSized reads a whole object of a known size.
func ReadSized(ctx context.Context, b Backend, name string, size int64) ([]byte, error) {
	rc, err := b.Get(ctx, name, 0, size)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	buf := make([]byte, size)
	if _, err := io.ReadFull(rc, buf); err != nil {
		return nil, fmt.Errorf("reading object %s: %w", name, err)
	}
	return buf, nil
}
