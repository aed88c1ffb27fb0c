package api

import (
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAuthority(t *testing.T) {
	t.Parallel()
	dir, now := t.TempDir(), time.Now()
	ca, err := loadAuthority(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, _, err := ca.serving(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 6443}, now)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "192.0.2.7"} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: "example.com"}); err == nil {
		t.Error("the certificate is good for strangers")
	}
	again, err := loadAuthority(dir, now)
	if err != nil || !again.cert.Equal(ca.cert) {
		t.Errorf("loaded again it is another: %v", err)
	}
	later, err := loadAuthority(dir, now.Add(9*365*24*time.Hour))
	if err != nil || later.cert.Equal(ca.cert) {
		t.Errorf("a CA that runs out is kept: %v", err)
	}
}

func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	for name, load := range map[string]func(dir string) error{
		caName:    func(dir string) error { _, err := loadAuthority(dir, time.Now()); return err },
		tokenName: func(dir string) error { _, err := loadToken(dir); return err },
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("short"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := load(dir); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("damaged %s: %v", name, err)
		}
	}
}

func TestWriteFileAtomic(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("old and readable by all"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeFileAtomic(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || string(raw) != "new" {
		t.Errorf("it holds %q: %v", raw, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("it has mode %v: %v", info.Mode(), err)
	}
	if err := writeFileAtomic(filepath.Join(path, "below"), nil); err == nil {
		t.Error("a file became a folder")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}
