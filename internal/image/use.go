package image

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// List returns all named images, sorted by name. An image whose content is
// damaged or for another platform is left out, and logged.
func (s *Store) List() []*Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Image
	for _, d := range s.index.entries {
		if isHold(d) {
			continue
		}
		ref := d.Annotations[annotationRef]
		img, err := s.find(ref)
		if err != nil {
			s.log.Warn("image cannot be used", "ref", shortRef(ref), "error", err)
			continue
		}
		all = append(all, img)
	}
	slices.SortFunc(all, func(a, b *Image) int { return strings.Compare(a.Ref, b.Ref) })
	return all
}

// Get returns an image by name or by digest. It does not ask any registry.
func (s *Store) Get(refOrDigest string) (*Image, error) {
	key, err := s.key(refOrDigest)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(key)
}

// key is the canonical form of a name, or a bare digest.
func (s *Store) key(refOrDigest string) (string, error) {
	if IsDigest(refOrDigest) {
		h, err := v1.NewHash(refOrDigest)
		if err != nil {
			return "", fmt.Errorf("%w %q: %w", ErrBadReference, refOrDigest, err)
		}
		return h.String(), nil
	}
	ref, err := s.parseRef(refOrDigest)
	if err != nil {
		return "", err
	}
	return ref.Name(), nil
}

// find looks a key up. s.mu is held.
func (s *Store) find(key string) (*Image, error) {
	r, d, err := s.findRecord(key)
	if err != nil {
		return nil, err
	}
	return s.image(r, d.Annotations[annotationRef], d.Annotations[annotationAdded]), nil
}

func (s *Store) findRecord(key string) (*record, v1.Descriptor, error) {
	d, ok := s.index.get(key)
	if !ok {
		if d, ok = s.findDigest(key); !ok {
			return nil, d, fmt.Errorf("%w: %s is not in the store: pull, build or import it", ErrNotFound, shortRef(key))
		}
	}
	r, err := s.load(d.Digest)
	if err != nil {
		return nil, d, fmt.Errorf("image %s: %w", shortRef(key), err)
	}
	return r, d, nil
}

// findDigest finds "sha256:..." and "name@sha256:..." among images that have
// other names: by the manifest's digest, or that of an index around it.
func (s *Store) findDigest(key string) (v1.Descriptor, bool) {
	repo, digest, named := strings.Cut(key, "@")
	if !named {
		repo, digest = "", key
	}
	h, err := v1.NewHash(digest)
	if err != nil || checkDigest(h) != nil {
		return v1.Descriptor{}, false
	}
	for _, d := range s.index.entries {
		if named {
			ref, err := name.ParseReference(d.Annotations[annotationRef])
			if err != nil || ref.Context().Name() != repo {
				continue
			}
		}
		if d.Digest == h {
			return d, true
		}
		if r, err := s.load(d.Digest); err == nil && slices.Contains(r.blobs[:len(r.blobs)-1-len(r.layers)], h) {
			return d, true
		}
	}
	return v1.Descriptor{}, false
}

// Use pins an image: until release is called it is not removed, and its
// Rootfs exists. Making the Rootfs, if it does not exist yet, can take
// seconds. release may be called more than once.
func (s *Store) Use(ctx context.Context, refOrDigest string) (img *Image, release func(), err error) {
	key, err := s.key(refOrDigest)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	r, d, err := s.findRecord(key)
	s.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	unpin := s.pin(r.keys()...)
	defer func() {
		if err != nil {
			unpin()
		}
	}()
	// It may have been removed before it was pinned.
	for _, h := range r.blobs {
		if !s.hasBlob(h) {
			return nil, nil, fmt.Errorf("%w: %s was removed, or has lost blob %s: pull it again", ErrNotFound, shortRef(key), h)
		}
	}
	if err := s.prepare(ctx, r, func(Progress) {}); err != nil {
		return nil, nil, fmt.Errorf("image %s: %w", shortRef(key), err)
	}
	now := time.Now()
	if err := os.Chtimes(s.rootfsPath(r.key), now, now); err != nil {
		return nil, nil, fmt.Errorf("image %s: %w", shortRef(key), err)
	}
	return s.image(r, d.Annotations[annotationRef], d.Annotations[annotationAdded]), unpin, nil
}

// keys are what to pin for an image in use.
func (r *record) keys() []string {
	keys := []string{r.key}
	for _, h := range r.blobs {
		keys = append(keys, h.String())
	}
	return keys
}

// Remove takes a name, or all names of a digest, away, and frees what no
// other image needs. It fails with ErrInUse while the image is pinned or held
// and has no other name.
func (s *Store) Remove(ctx context.Context, refOrDigest string) error {
	key, err := s.key(refOrDigest)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.index.get(key)
	drop := func(o v1.Descriptor) bool { return o.Annotations[annotationRef] == key }
	if !ok {
		if d, ok = s.findDigest(key); !ok {
			return fmt.Errorf("%w: %s is not in the store", ErrNotFound, shortRef(key))
		}
		drop = func(o v1.Descriptor) bool { return o.Digest == d.Digest && !isHold(o) }
	}
	others := slices.ContainsFunc(s.index.entries, func(o v1.Descriptor) bool {
		return o.Digest == d.Digest && !drop(o) && !isHold(o)
	})
	held := slices.ContainsFunc(s.index.entries, func(o v1.Descriptor) bool { return o.Digest == d.Digest && isHold(o) })
	if r, err := s.load(d.Digest); err == nil && !others && (held || s.pins[r.manifest.Digest.String()] > 0) {
		return fmt.Errorf("%w: %s: delete the services that run it first", ErrInUse, shortRef(key))
	}
	err = s.change(func(all []v1.Descriptor) []v1.Descriptor { return slices.DeleteFunc(all, drop) })
	if err != nil {
		return err
	}
	_, err = s.sweep(ctx)
	return err
}
