package build

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pavlo-v-chernykh/keystore-go/v4"
)

const (
	bundlePath     = "etc/ssl/certs/ca-certificates.crt"
	trustStorePath = "etc/ssl/certs/java/cacerts"
	mozillaPath    = "usr/share/ca-certificates/mozilla"
)

// bundle joins the certificates of Debian's ca-certificates package below root.
// This machine's own additions stay out: an image must not trust more because
// of where it was built.
func bundle(root string) ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(globEscape(root), mozillaPath, "*.crt"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no certificates in %s: apt-get install ca-certificates", filepath.Join(root, mozillaPath))
	}
	slices.Sort(files)
	var b bytes.Buffer
	for _, f := range files {
		c, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		b.Write(bytes.TrimSpace(c))
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

// writeCertificates makes a base's bundle, where programs and OpenSSL look.
func writeCertificates(root string) error {
	b, err := bundle(root)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(root, bundlePath), b, 0o644); err != nil {
		return err
	}
	return ensureLink(root, "usr/lib/ssl/cert.pem", "/"+bundlePath)
}

// writeTrustStore makes the bundle again as Java's key store.
func writeTrustStore(root string) error {
	rest, err := os.ReadFile(filepath.Join(root, bundlePath))
	if err != nil {
		return err
	}
	store := keystore.New(keystore.WithOrderedAliases())
	n := 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		n++
		if err := store.SetTrustedCertificateEntry(fmt.Sprintf("ca-%04d", n), keystore.TrustedCertificateEntry{
			CreationTime: time.Unix(0, 0), Certificate: keystore.Certificate{Type: "X.509", Content: block.Bytes},
		}); err != nil {
			return fmt.Errorf("trust store for Java: %w", err)
		}
	}
	var b bytes.Buffer
	// The password guards nothing: it is Java's well-known one for this file.
	if err := store.Store(&b, []byte("changeit")); err != nil {
		return fmt.Errorf("trust store for Java: %w", err)
	}
	return writeFile(filepath.Join(root, trustStorePath), b.Bytes(), 0o644)
}

// writeFile writes a new file in the place of what is there: in a foreign tree
// that may be a link out of it.
func writeFile(path string, b []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, b, mode)
}
