// Package install puts the programs and the kernel that the firecracker driver
// needs on the machine: the pinned release of Firecracker, checked against its
// checksum, and the distribution's kernel for virtual machines.
package install

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/sandbox/firecracker"
)

// Bounds of what is fetched and unpacked, in bytes.
const (
	maxArchive = 128 << 20
	maxProgram = 64 << 20
)

// fetchTimeout bounds the download.
const fetchTimeout = 10 * time.Minute

// ErrChecksum is wrapped by errors about an archive that is not the pinned one.
var ErrChecksum = errors.New("wrong checksum")

// Programs says how to install firecracker and jailer.
type Programs struct {
	Release firecracker.Release
	Dir     string       // made if missing
	Archive string       // a file to take instead of fetching it; "" fetches
	URL     string       // "" is the release's own
	HTTP    *http.Client // nil is http.DefaultClient
	Arch    string       // of the machine, as Go says it; "" is this program's
}

var programs = []string{"firecracker", "jailer"}

// Install fetches or opens the archive, checks it, and puts the programs into
// Dir. Nothing appears there before everything has been checked.
func (p Programs) Install(ctx context.Context) error {
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(p.Dir, ".setup-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // a folder of ours
	archive := filepath.Join(work, "archive")
	if p.Archive != "" {
		err = p.copy(archive)
	} else {
		err = p.fetch(ctx, archive)
	}
	if err != nil {
		return err
	}
	if err := unpack(archive, p.Release, work); err != nil {
		return fmt.Errorf("%s: %w", p.Release.Archive(), err)
	}
	if err := p.writeRecord(work); err != nil {
		return err
	}
	// The record comes last: without it, or with an old one, what is there is
	// not taken for this release.
	for _, name := range append(slices.Clone(programs), recordFile) {
		if err := os.Rename(filepath.Join(work, name), filepath.Join(p.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (p Programs) copy(to string) error {
	f, err := os.Open(p.Archive)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := p.store(f, to); err != nil {
		return fmt.Errorf("%s: %w", p.Archive, err)
	}
	return nil
}

func (p Programs) fetch(ctx context.Context, to string) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	url, client := p.URL, p.HTTP
	if url == "" {
		url = p.Release.URL()
	}
	if client == nil {
		client = http.DefaultClient
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // read only
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch %s: %s", url, res.Status)
	}
	if err := p.store(res.Body, to); err != nil {
		return fmt.Errorf("fetch %s: %w", url, err)
	}
	return nil
}

// store writes an archive to a file and checks it on the way.
func (p Programs) store(r io.Reader, to string) (err error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(r, maxArchive+1))
	if err != nil {
		return err
	}
	if n > maxArchive {
		return fmt.Errorf("longer than %d bytes", int64(maxArchive))
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != p.Release.SHA256 {
		return fmt.Errorf("%w: SHA-256 is %s, want %s", ErrChecksum, got, p.Release.SHA256)
	}
	return nil
}

// unpack takes the programs out of an archive.
func unpack(archive string, r firecracker.Release, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	missing := map[string]string{}
	for _, name := range programs {
		missing[r.Member(name)] = name
	}
	t := tar.NewReader(z)
	for len(missing) > 0 {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			for member := range missing {
				return fmt.Errorf("it has no %s", member)
			}
		}
		if err != nil {
			return err
		}
		member := filepath.Clean(h.Name)
		name, wanted := missing[member]
		if !wanted {
			continue
		}
		if h.Typeflag != tar.TypeReg || h.Size > maxProgram {
			return fmt.Errorf("%s is not a file of at most %d bytes", h.Name, int64(maxProgram))
		}
		if err := writeProgram(filepath.Join(dir, name), t); err != nil {
			return err
		}
		delete(missing, member)
	}
	return nil
}

func writeProgram(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, io.LimitReader(r, maxProgram)); err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o755), f.Sync())
}
