package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

func TestWriteRead(t *testing.T) {
	for _, h := range []Header{U32, U64} {
		var b bytes.Buffer
		messages := [][]byte{[]byte(`{}`), nil, bytes.Repeat([]byte("x"), 1<<20)}
		for _, m := range messages {
			if err := h.Write(&b, m); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range messages {
			got, err := h.Read(&b)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("header of %d: %d bytes, %v; want %d", h, len(got), err, len(want))
			}
		}
		if _, err := h.Read(&b); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	}
}

func TestBytesOnTheWire(t *testing.T) {
	var b bytes.Buffer
	_ = U32.Write(&b, []byte("ab"))
	_ = U64.Write(&b, []byte("c"))
	if want := "\x00\x00\x00\x02ab\x00\x00\x00\x00\x00\x00\x00\x01c"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestLimits(t *testing.T) {
	for _, test := range []struct {
		name string
		in   []byte
		h    Header
		want error
	}{
		{"u32 too large", binary.BigEndian.AppendUint32(nil, Max+1), U32, ErrTooLarge},
		{"u64 too large", binary.BigEndian.AppendUint64(nil, 1<<63), U64, ErrTooLarge},
		{"half a header", []byte{0, 0}, U32, io.ErrUnexpectedEOF},
		{"announced, not sent", binary.BigEndian.AppendUint32(nil, Max), U32, io.ErrUnexpectedEOF},
		{"part of it", append(binary.BigEndian.AppendUint64(nil, 9), "abc"...), U64, io.ErrUnexpectedEOF},
	} {
		if _, err := test.h.Read(bytes.NewReader(test.in)); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	if err := U64.Write(io.Discard, make([]byte, Max+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("written: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02ab"), true)
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x02ab"), false)
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), false)
	f.Fuzz(func(t *testing.T, in []byte, short bool) {
		h := U64
		if short {
			h = U32
		}
		got, err := h.Read(bytes.NewReader(in))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := h.Write(&out, got); err != nil || !bytes.HasPrefix(in, out.Bytes()) {
			t.Errorf("%q became %q, %v", in, out.Bytes(), err)
		}
	})
}
