package image

import (
	"context"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// holdPrefix begins the names that Hold gives. The domain cannot exist.
const holdPrefix = "hold.skep.invalid/"

func isHold(d v1.Descriptor) bool {
	return strings.HasPrefix(d.Annotations[annotationRef], holdPrefix)
}

// Hold keeps an image, by digest, across restarts and although its name may
// be given to another one: for what is deployed but may not be running.
// holder is a path such as "namespace/revision".
func (s *Store) Hold(_ context.Context, holder, digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, _, err := s.findRecord(digest)
	if err != nil {
		return err
	}
	if err := s.setRef(holdPrefix+holder+":held", r.manifest, nil); err != nil {
		return fmt.Errorf("hold image %s: %w", digest, err)
	}
	return nil
}

// Unhold ends what Hold began. An unknown holder is no error.
func (s *Store) Unhold(_ context.Context, holder string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ref := holdPrefix + holder + ":held"
	if _, ok := s.index.get(ref); !ok {
		return nil
	}
	return s.change(func(all []v1.Descriptor) []v1.Descriptor {
		kept := all[:0]
		for _, d := range all {
			if d.Annotations[annotationRef] != ref {
				kept = append(kept, d)
			}
		}
		return kept
	})
}

// Holders lists who holds images.
func (s *Store) Holders() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, d := range s.index.entries {
		if isHold(d) {
			holder := strings.TrimPrefix(d.Annotations[annotationRef], holdPrefix)
			out = append(out, strings.TrimSuffix(holder, ":held"))
		}
	}
	return out
}
