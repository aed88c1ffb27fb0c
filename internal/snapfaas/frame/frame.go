// Package frame reads and writes messages behind their length, as SnapFaaS's
// protocols have them: four bytes between host and guest, eight between client
// and controller, the highest first.
package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Max bounds every message, in bytes.
const Max = 16 << 20

// ErrTooLarge is returned for a message beyond Max, of which then nothing has
// been read or written.
var ErrTooLarge = errors.New("message is too large")

// Header is the kind of length.
type Header int

// The two kinds, by their number of bytes.
const (
	U32 Header = 4
	U64 Header = 8
)

// Read reads a message. It returns io.EOF if the stream ends before one, and
// io.ErrUnexpectedEOF if it ends within.
func (h Header) Read(r io.Reader) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[8-h:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint64(head[:])
	if n > Max {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, n, Max)
	}
	// The buffer grows with what comes, not with what is announced.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b.Bytes(), nil
}

// Write writes a message with one call of w.Write.
func (h Header) Write(w io.Writer, data []byte) error {
	if len(data) > Max {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(data), Max)
	}
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], uint64(len(data)))
	_, err := w.Write(append(head[8-h:], data...))
	return err
}
