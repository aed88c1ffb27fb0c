package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// PullOptions of a Pull.
type PullOptions struct {
	// Insecure allows plain HTTP.
	Insecure bool
	// Keychain holds credentials. Default docker's: ~/.docker/config.json
	// and its credential helpers.
	Keychain authn.Keychain
	// Timeout of the whole pull. Default 30 minutes.
	Timeout time.Duration
	// Progress, if not nil, is told how far the pull is, by one goroutine at
	// a time and not after Pull has returned. It must be quick.
	Progress func(Progress)
}

// Pull brings an image from its registry into the store, verified, and makes
// its root file system. Concurrent pulls of the same image are one.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	var opts []name.Option
	if o.Insecure {
		opts = append(opts, name.Insecure)
	}
	parsed, err := s.parseRef(ref, opts...)
	if err != nil {
		return nil, err
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("the pull took longer than %v: %w", o.Timeout, context.DeadlineExceeded))
	defer cancel()
	// Pulls with credentials of their own are only for whoever has these.
	key := fmt.Sprintf("%s insecure=%t", parsed.Name(), o.Insecure)
	if o.Keychain != authn.DefaultKeychain {
		key += fmt.Sprintf(" private=%d", s.private.Add(1))
	}
	timeout := o.Timeout
	img, err := s.pulls.do(ctx, s.stop, key, o.Progress, func(ctx context.Context, report func(Progress)) (*Image, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		start := time.Now()
		img, err := s.pull(ctx, parsed, o, report)
		if err != nil {
			return nil, err
		}
		s.log.Info("image pulled", "ref", img.Ref, "digest", img.Digest, "bytes", img.Size, "took", time.Since(start))
		return img, nil
	})
	if err != nil {
		return nil, fmt.Errorf("pulling image %s: %w", shortRef(parsed.Name()), err)
	}
	own := *img // other callers have the same one
	return &own, nil
}

func (s *Store) pull(ctx context.Context, ref name.Reference, o PullOptions, report func(Progress)) (*Image, error) {
	report(Progress{Phase: "resolve"})
	c := &registryClient{repo: ref.Context(), keychain: o.Keychain, insecure: o.Insecure}
	defer c.close()
	raw, mediaType, err := c.manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	for range 4 {
		t, err := manifestType(raw, mediaType)
		if err != nil {
			return nil, err
		}
		if !t.IsIndex() {
			return s.ingest(ctx, ref.Name(), raw, t, c.blob, report)
		}
		d, err := choose(raw, s.cfg.Platform)
		if err != nil {
			return nil, err
		}
		if err := checkDigest(d.Digest); err != nil {
			return nil, err
		}
		if raw, mediaType, err = c.manifest(ctx, ref.Context().Digest(d.Digest.String())); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: indexes nested too deep", ErrNotImage)
}

// isPlainHTTP recognises a registry that was asked for TLS and has none.
func isPlainHTTP(err error) bool {
	return errors.Is(err, ErrPlainHTTP) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}
