package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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
	own := slices.Contains(ownNames(s.registry), host)
	if _, digest, ok := strings.Cut(ref, "@"); ok {
		// The content is the same wherever it came from, also from our own
		// registry on a port of an earlier run.
		if img, err := s.store.Get(digest); err == nil {
			return img, nil
		}
	}
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

// ownNames are the names of the node's registry in references.
func ownNames(addr string) []string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return []string{addr}
	}
	return []string{addr, net.JoinHostPort("localhost", port)}
}

// Hold keeps an image until Unhold, across restarts.
func (s *imageSource) Hold(ctx context.Context, holder, digest string) error {
	return s.store.Hold(ctx, holder, digest)
}

// Unhold ends what Hold began.
func (s *imageSource) Unhold(ctx context.Context, holder string) error {
	return s.store.Unhold(ctx, holder)
}

// Holders lists who holds images.
func (s *imageSource) Holders() []string { return s.store.Holders() }

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
