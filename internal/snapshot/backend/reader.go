package backend

import (
	"context"
	"fmt"
	"io"
)

// exactReader ends with io.ErrUnexpectedEOF when its source ends before n
// bytes came, and with ctx's error when ctx ends.
type exactReader struct {
	ctx context.Context
	rc  io.ReadCloser
	n   int64
}

// ExactReader gives exactly n bytes of rc, or an error: io.ErrUnexpectedEOF
// when rc ends before, ctx's when ctx ended. Implementations wrap what Get
// returns in it.
func ExactReader(ctx context.Context, rc io.ReadCloser, n int64) io.ReadCloser {
	return &exactReader{ctx: ctx, rc: rc, n: n}
}

func (r *exactReader) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	if int64(len(p)) > r.n {
		p = p[:r.n]
	}
	n, err := r.rc.Read(p)
	r.n -= int64(n)
	if err == io.EOF && r.n > 0 {
		return n, io.ErrUnexpectedEOF
	}
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

func (r *exactReader) Close() error { return r.rc.Close() }

// sizedReader fails with ErrSize unless its source has exactly n bytes.
type sizedReader struct {
	ctx  context.Context
	r    io.Reader
	name string
	want int64
	got  int64
}

// SizedReader passes r through and fails with ErrSize where it has more or
// less than n bytes. Implementations read what Put is given through it.
func SizedReader(ctx context.Context, name string, r io.Reader, n int64) io.Reader {
	return &sizedReader{ctx: ctx, r: r, name: name, want: n}
}

func (r *sizedReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	r.got += int64(n)
	switch {
	case r.got > r.want:
		return 0, sizeError(r.name, r.want, "more")
	case err == io.EOF && r.got < r.want:
		return n, sizeError(r.name, r.want, "less")
	}
	return n, err
}

func sizeError(name string, want int64, how string) error {
	return fmt.Errorf("%w: %s was announced with %d bytes and has %s", ErrSize, name, want, how)
}
