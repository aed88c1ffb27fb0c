package image

import (
	"context"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// Add stores an image that a builder made, under ref. Its layers must be able
// to tell their digests before they are read.
func (s *Store) Add(ctx context.Context, img v1.Image, ref string) (*Image, error) {
	parsed, err := s.parseRef(ref)
	if err != nil {
		return nil, err
	}
	added, err := s.addAs(ctx, img, parsed.Name(), func(Progress) {})
	if err != nil {
		return nil, fmt.Errorf("adding image %s: %w", ref, err)
	}
	return added, nil
}

func (s *Store) addAs(ctx context.Context, img v1.Image, canonical string, report func(Progress)) (*Image, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return nil, fmt.Errorf("its manifest: %w", err)
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return nil, fmt.Errorf("its media type: %w", err)
	}
	config, err := partial.ConfigLayer(img)
	if err != nil {
		return nil, fmt.Errorf("its config: %w", err)
	}
	configDigest, err := config.Digest()
	if err != nil {
		return nil, fmt.Errorf("its config: %w", err)
	}
	open := func(_ context.Context, d v1.Descriptor, _ int64) (io.ReadCloser, int64, error) {
		layer := config
		if d.Digest != configDigest {
			var err error
			if layer, err = img.LayerByDigest(d.Digest); err != nil {
				return nil, 0, permanent(err)
			}
		}
		r, err := layer.Compressed()
		if err != nil {
			return nil, 0, permanent(err)
		}
		return r, 0, nil
	}
	return s.ingest(ctx, canonical, raw, mediaType, open, report)
}
