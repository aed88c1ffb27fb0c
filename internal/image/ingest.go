package image

import (
	"bytes"
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// ingest brings an image whose manifest is at hand into the store under a
// canonical name, and makes its root file system.
func (s *Store) ingest(ctx context.Context, ref string, raw []byte, mediaType types.MediaType, open blobFunc, report func(Progress)) (*Image, error) {
	t, err := manifestType(raw, mediaType)
	if err != nil {
		return nil, err
	}
	m, err := s.parseManifest(raw)
	if err != nil {
		return nil, err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("hashing manifest: %w", err)
	}
	keys := []string{digest.String(), m.Config.Digest.String()}
	for _, l := range m.Layers {
		keys = append(keys, l.Digest.String())
	}
	defer s.pin(keys...)()

	// The config first: it tells whether the layers are of use at all.
	if err := s.ensureBlob(ctx, m.Config, open, func(int64) {}); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	rawConfig, err := s.readBlob(m.Config.Digest)
	if err != nil {
		return nil, err
	}
	config, err := s.parseConfig(rawConfig, m)
	if err != nil {
		return nil, err
	}
	if err := s.ensureLayers(ctx, m.Layers, open, report); err != nil {
		return nil, err
	}
	if _, err := s.putBytes(raw); err != nil {
		return nil, err
	}
	r := &record{manifest: v1.Descriptor{MediaType: t, Digest: digest, Size: int64(len(raw))}, layers: m.Layers, config: config, key: rootfsKey(config.RootFS.DiffIDs)}
	defer s.pin(r.key)()
	if err := s.prepare(ctx, r, report); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.setRef(ref, r.manifest, nil); err != nil {
		return nil, err
	}
	return s.find(ref)
}

// ensureLayers brings layers into the store, a few at a time.
func (s *Store) ensureLayers(ctx context.Context, layers []v1.Descriptor, open blobFunc, report func(Progress)) error {
	var total int64
	for _, l := range layers {
		total += l.Size
	}
	counts := make(chan int64, 64)
	counted := make(chan struct{})
	go func() { // so that progress is reported in order, by one goroutine
		defer close(counted)
		var done int64
		for n := range counts {
			done += n
			report(Progress{Phase: "layers", Done: done, Total: total})
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	seen := map[v1.Hash]bool{}
	for i, l := range layers {
		if seen[l.Digest] {
			continue
		}
		seen[l.Digest] = true
		g.Go(func() error {
			if err := s.ensureBlob(gctx, l, open, func(n int64) { counts <- n }); err != nil {
				return fmt.Errorf("layer %d: %w", i+1, err)
			}
			return nil
		})
	}
	err := g.Wait()
	close(counts)
	<-counted
	return err
}
