package qemu

import (
	"bytes"
	"errors"
	"io"
	"os"

	"github.com/skep-dev/skep/internal/sandbox/ocispec"
)

// The mark of ext2 to ext4, and its place in the file.
const extMarkAt = 1024 + 56

var extMark = []byte{0x53, 0xef}

// checkRootfs looks if a root file system is one that guests can mount: EROFS,
// or ext2 to ext4 as other tools make them, which is mounted read-only too.
func checkRootfs(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	mark := make([]byte, len(extMark))
	_, err = f.ReadAt(mark, extMarkAt)
	if cerr := f.Close(); cerr != nil {
		return cerr
	}
	switch {
	case err == nil && bytes.Equal(mark, extMark):
		return nil
	case err != nil && !errors.Is(err, io.EOF):
		return err
	}
	_, image, err := ocispec.OpenImage(path)
	if err != nil {
		return err
	}
	return image.Close()
}
