package snapshot

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A stored chunk: magic "SKC", codec u8, length of the plain content u32
// (little-endian), payload. Its name is the digest of the plain content, so
// the same content is the same chunk however well it was compressed.
const (
	chunkMagic  = "SKC"
	chunkHeader = 8
	codecPlain  = 0
	codecZstd   = 1
)

// Compressing must save an eighth, or decompressing is not worth its time.
func pays(plain, packed int) bool { return packed <= plain-plain/8 }

var encoders = sync.Pool{New: func() any {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil // only for options that contradict each other
	}
	return enc
}}

var decoders = sync.Pool{New: func() any {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxChunk))
	if err != nil {
		return nil
	}
	return dec
}}

// encodeChunk appends the stored form of plain to dst.
func encodeChunk(dst, plain []byte) []byte {
	start := len(dst)
	dst = append(dst, chunkMagic...)
	dst = append(dst, codecZstd)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(plain)))
	if enc, ok := encoders.Get().(*zstd.Encoder); ok {
		dst = enc.EncodeAll(plain, dst)
		encoders.Put(enc)
		if pays(len(plain), len(dst)-start-chunkHeader) {
			return dst
		}
	}
	dst = dst[:start+chunkHeader]
	dst[start+len(chunkMagic)] = codecPlain
	return append(dst, plain...)
}

// decodeChunk checks a stored chunk against its digest and length and returns
// the plain content, in buf where it fits. The error is a *DamageError.
func decodeChunk(stored []byte, want Digest, length int, buf []byte) ([]byte, error) {
	damaged := func(kind Kind, err error, format string, args ...any) error {
		return &DamageError{Object: chunkName(want), Kind: kind, Reason: fmt.Sprintf(format, args...), Err: err}
	}
	if len(stored) < chunkHeader {
		return nil, damaged(Truncated, nil, "%d bytes are less than a header", len(stored))
	}
	if string(stored[:len(chunkMagic)]) != chunkMagic {
		return nil, damaged(Corrupt, nil, "it begins with % x", stored[:len(chunkMagic)])
	}
	if codec := stored[3]; codec > codecZstd {
		// Unless nothing but the codec's byte is wrong, it is a later version's.
		for known := range byte(codecZstd + 1) {
			if _, err := decodeChunk(append([]byte{'S', 'K', 'C', known}, stored[4:]...), want, length, buf); err == nil {
				return nil, damaged(Corrupt, nil, "codec %d, the content is of codec %d", codec, known)
			}
		}
		return nil, damaged(Foreign, nil, "codec %d, this program knows those up to %d", codec, codecZstd)
	}
	if n := int64(binary.LittleEndian.Uint32(stored[4:])); n != int64(length) {
		return nil, damaged(Corrupt, nil, "it says %d bytes, the layer says %d", n, length)
	}
	payload := stored[chunkHeader:]
	plain := payload
	if stored[3] == codecZstd {
		dec, ok := decoders.Get().(*zstd.Decoder)
		if !ok {
			return nil, fmt.Errorf("no zstd decoder could be made")
		}
		defer decoders.Put(dec)
		if cap(buf) < length {
			buf = make([]byte, 0, length)
		}
		var err error
		if plain, err = dec.DecodeAll(payload, buf[:0]); err != nil {
			return nil, damaged(Corrupt, err, "decompressing")
		}
	}
	switch {
	case len(plain) < length:
		return nil, damaged(Truncated, nil, "%d of %d bytes", len(plain), length)
	case len(plain) > length:
		return nil, damaged(Corrupt, nil, "%d bytes where %d should be", len(plain), length)
	case DigestOf(plain) != want:
		return nil, damaged(Corrupt, nil, "its content has another digest")
	}
	return plain, nil
}
