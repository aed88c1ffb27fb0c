package image

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// parseRef parses a reference as docker does, "hello" meaning
// "index.docker.io/library/hello:latest". The host of our own registry
// endpoint is left out: what is pushed to 127.0.0.1:5000/hello is "hello".
func (s *Store) parseRef(ref string, opts ...name.Option) (name.Reference, error) {
	if len(ref) > 512 {
		return nil, fmt.Errorf("%w: %d bytes, at most 512 are allowed: %.60q", ErrBadReference, len(ref), ref)
	}
	s.mu.Lock()
	hosts := s.hosts
	s.mu.Unlock()
	if host, rest, ok := strings.Cut(ref, "/"); ok && slices.Contains(hosts, host) {
		ref = rest
	}
	r, err := name.ParseReference(ref, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w %q: want NAME, NAME:TAG or NAME@sha256:DIGEST: %w", ErrBadReference, ref, err)
	}
	return r, nil
}

// shortRef is a canonical name as people write it.
func shortRef(canonical string) string {
	s := strings.TrimPrefix(canonical, name.DefaultRegistry+"/")
	return strings.TrimPrefix(s, "library/")
}

// IsDigest says whether ref is a bare digest, "sha256:...", not a name.
func IsDigest(ref string) bool { return strings.HasPrefix(ref, "sha256:") }
