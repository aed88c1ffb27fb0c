// Package runscbin holds the program skep-runsc, which the gvisor driver
// starts for each sandbox.
package runscbin

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// The README is there so that the pattern matches in a clean clone too.
//
//go:embed *
var files embed.FS

// Extract puts the program into dir, unless it is there from an earlier
// call, and returns its path. Without an embedded program (in a build without
// make) the path is "": the executable that runs must serve as runsc itself.
// Programs of other versions are removed from dir.
func Extract(dir string) (string, error) {
	packed, err := files.ReadFile("skep-runsc.gz")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("embedded skep-runsc: %w", err)
	}
	sum := sha256.Sum256(packed)
	path := filepath.Join(dir, "skep-runsc-"+hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("extract skep-runsc: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("extract skep-runsc: %w", err)
	}
	if err := unpack(packed, path+".tmp"); err != nil {
		return "", fmt.Errorf("extract skep-runsc: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return "", fmt.Errorf("extract skep-runsc: %w", err)
	}
	return path, nil
}

func unpack(packed []byte, path string) (err error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	// Executable for the unprivileged user that a sandbox's process becomes.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, z); err != nil { //nolint:gosec // our own program, built in
		return err
	}
	return f.Sync() // a name stands for a whole file, also after a power cut
}
