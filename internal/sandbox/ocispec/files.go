package ocispec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/internal/sandbox"
)

// etcFiles are made for each sandbox and mounted over its /etc.
var etcFiles = []string{"hosts", "hostname", "resolv.conf"}

func etcDir(s *sandbox.Spec) string { return filepath.Join(s.Dir, "etc") }

// WriteFiles makes the files that New mounts over /etc, in Spec.Dir.
func WriteFiles(s *sandbox.Spec) error {
	if err := os.Mkdir(etcDir(s), 0o755); err != nil {
		return fmt.Errorf("make files for /etc: %w", err)
	}
	for _, f := range etcFiles {
		if err := os.WriteFile(filepath.Join(etcDir(s), f), []byte(etcFile(s, f)), 0o644); err != nil {
			return fmt.Errorf("make files for /etc: %w", err)
		}
	}
	return nil
}

func etcFile(s *sandbox.Spec, name string) string {
	var b strings.Builder
	switch name {
	case "hosts":
		// A name for the own address spares servers that ask for their full
		// name (Python's http.server) a DNS time-out.
		b.WriteString("127.0.0.1\tlocalhost\n")
		if s.Hostname != "" && s.Link.Address.IP != nil {
			fmt.Fprintf(&b, "%s\t%s\n", s.Link.Address.IP, s.Hostname)
		}
	case "hostname":
		b.WriteString(s.Hostname + "\n")
	case "resolv.conf":
		for _, ip := range s.Link.DNS {
			fmt.Fprintf(&b, "nameserver %s\n", ip)
		}
	}
	return b.String()
}
