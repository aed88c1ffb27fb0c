package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/image"
)

// imageSource finds images for services: on the node, or in their registry.
type imageSource struct {
	store    *image.Store
	registry string // host:port of the node's own
	insecure []string
}

// Ensure returns the image of a reference. What the node has under that name
// is taken without asking the registry, unless always is set.
func (s *imageSource) Ensure(ctx context.Context, ref string, always bool) (*image.Image, error) {
	host, _, _ := strings.Cut(ref, "/")
	own := host == s.registry
	if !always || own {
		img, err := s.store.Get(ref)
		if err == nil {
			return img, nil
		}
		if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
		if own {
			return nil, fmt.Errorf("%w: push or import it first (skep image list shows what there is)", err)
		}
	}
	return s.store.Pull(ctx, ref, image.PullOptions{Insecure: slices.Contains(s.insecure, host)})
}

// Use keeps an image on the node until release is called.
func (s *imageSource) Use(ctx context.Context, digest string) (*image.Image, func(), error) {
	return s.store.Use(ctx, digest)
}

// collect removes unused images now and then while the store is above its
// size, until ctx ends.
func collect(ctx context.Context, store *image.Store, maxBytes int64, log *slog.Logger) {
	t := time.NewTicker(10 * time.Minute)
	defer t.Stop()
	for {
		if r, err := store.GC(ctx, image.Policy{MaxBytes: maxBytes}); err != nil && ctx.Err() == nil {
			log.Warn("collect unused images", "error", err)
		} else if r.Freed > 0 {
			log.Info("removed unused images", "bytes", r.Freed)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
