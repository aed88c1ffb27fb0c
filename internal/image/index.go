package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	annotationRef   = "org.opencontainers.image.ref.name"
	annotationAdded = "dev.skep.image.added"
)

// index holds the names of images, as the index.json of an OCI image layout.
type index struct {
	entries []v1.Descriptor // a canonical name each
}

func (x *index) load(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var m v1.IndexManifest
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("%s is damaged: restore it, or remove it to start without images: %w", path, err)
	}
	x.entries = m.Manifests
	return nil
}

func (x *index) encode() ([]byte, error) {
	return json.MarshalIndent(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: append([]v1.Descriptor{}, x.entries...)}, "", "  ")
}

func (x *index) get(ref string) (v1.Descriptor, bool) {
	i := slices.IndexFunc(x.entries, func(d v1.Descriptor) bool { return d.Annotations[annotationRef] == ref })
	if i < 0 {
		return v1.Descriptor{}, false
	}
	return x.entries[i], true
}

// change applies f to a copy of the names and makes it durable. s.mu is held.
func (s *Store) change(f func([]v1.Descriptor) []v1.Descriptor) error {
	next := index{entries: f(slices.Clone(s.index.entries))}
	data, err := next.encode()
	if err != nil {
		return fmt.Errorf("encoding index.json: %w", err)
	}
	if err := s.writeFile("index.json", data); err != nil {
		return err
	}
	s.index = next
	return nil
}

// setRef gives a manifest a canonical name, and takes other names away. s.mu is held.
func (s *Store) setRef(ref string, d v1.Descriptor, drop func(v1.Descriptor) bool) error {
	return s.change(func(all []v1.Descriptor) []v1.Descriptor {
		all = slices.DeleteFunc(all, func(o v1.Descriptor) bool {
			return o.Annotations[annotationRef] == ref || drop != nil && drop(o)
		})
		return append(all, v1.Descriptor{
			MediaType: d.MediaType, Digest: d.Digest, Size: d.Size,
			Annotations: map[string]string{annotationRef: ref, annotationAdded: time.Now().UTC().Format(time.RFC3339Nano)},
		})
	})
}
