package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	requestTimeout = time.Minute // of a manifest, of a handshake, of response headers
	stallTimeout   = time.Minute // without a byte of a blob
)

// registryClient reads one repository. Authentication is
// go-containerregistry's; the requests are our own, because its layers
// cannot be resumed in the middle.
type registryClient struct {
	repo     name.Repository
	keychain authn.Keychain
	insecure bool

	mu   sync.Mutex
	base *http.Transport
	rt   http.RoundTripper
}

// httpsOnly refuses plain HTTP, to which the library would fall back for
// local and private addresses without being asked.
type httpsOnly struct{ http.RoundTripper }

func (t httpsOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("%w: %s", ErrPlainHTTP, r.URL.Host)
	}
	return t.RoundTripper.RoundTrip(r)
}

func (c *registryClient) transport(ctx context.Context) (http.RoundTripper, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rt != nil {
		return c.rt, nil
	}
	if c.base == nil {
		c.base = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   30 * time.Second,
			ResponseHeaderTimeout: requestTimeout,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       30 * time.Second,
			ForceAttemptHTTP2:     true,
		}
	}
	var base http.RoundTripper = c.base
	if !c.insecure {
		base = httpsOnly{base}
	}
	auth, err := authn.Resolve(ctx, c.keychain, c.repo)
	if err != nil {
		return nil, permanent(fmt.Errorf("%w: reading credentials for %s: %w", ErrUnauthorized, c.repo.RegistryStr(), err))
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	rt, err := transport.NewWithContext(ctx, c.repo.Registry, auth, transport.NewUserAgent(base, "skep"), []string{c.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	c.rt = rt
	return rt, nil
}

func (c *registryClient) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base != nil {
		c.base.CloseIdleConnections()
	}
}

// get sends one request; the response has one of the statuses.
func (c *registryClient) get(ctx context.Context, path string, header http.Header, statuses ...int) (*http.Response, error) {
	rt, err := c.transport(ctx)
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("%s://%s/v2/%s/%s", c.repo.Scheme(), c.repo.RegistryStr(), c.repo.RepositoryStr(), path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, statuses...); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// manifest reads a manifest or an index; if ref is a digest, it is verified.
func (c *registryClient) manifest(ctx context.Context, ref name.Reference) (raw []byte, t types.MediaType, err error) {
	header := http.Header{"Accept": {strings.Join([]string{
		string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
		string(types.OCIImageIndex), string(types.DockerManifestList),
	}, ",")}}
	err = retry(ctx, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		resp, err := c.get(ctx, "manifests/"+ref.Identifier(), header, http.StatusOK)
		if err != nil {
			return false, err
		}
		defer func() { _ = resp.Body.Close() }()
		if raw, err = io.ReadAll(io.LimitReader(resp.Body, maxManifestBytes+1)); err != nil {
			return false, err
		}
		if len(raw) > maxManifestBytes {
			return false, permanent(fmt.Errorf("%w: its manifest has more than %d bytes", ErrTooLarge, maxManifestBytes))
		}
		t = types.MediaType(resp.Header.Get("Content-Type"))
		return true, nil
	})
	if err != nil {
		return nil, "", c.explain(err)
	}
	if d, ok := ref.(name.Digest); ok {
		sum := sha256.Sum256(raw)
		if got := "sha256:" + hex.EncodeToString(sum[:]); got != d.DigestStr() {
			return nil, "", fmt.Errorf("%w: %s sent a manifest with digest %s for %s", ErrCorrupt, c.repo.RegistryStr(), got, d.DigestStr())
		}
	}
	return raw, t, nil
}

// blob is a blobFunc.
func (c *registryClient) blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stall := time.AfterFunc(stallTimeout+requestTimeout, func() { cancel(fmt.Errorf("%w: no data for %v", ErrUnreachable, stallTimeout)) })
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := c.get(ctx, "blobs/"+d.Digest.String(), header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		stall.Stop()
		cancel(nil)
		return nil, 0, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		offset = 0
	} else if !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
		_ = resp.Body.Close()
		stall.Stop()
		cancel(nil)
		return nil, 0, permanent(fmt.Errorf("%w: %s resumed at %q instead of byte %d", ErrCorrupt, c.repo.RegistryStr(), resp.Header.Get("Content-Range"), offset))
	}
	return &stallReader{ReadCloser: resp.Body, stall: stall, cancel: cancel}, offset, nil
}

// stallReader fails when the connection is silent for too long.
type stallReader struct {
	io.ReadCloser
	stall  *time.Timer
	cancel context.CancelCauseFunc
}

func (r *stallReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 {
		r.stall.Reset(stallTimeout)
	}
	return n, err
}

func (r *stallReader) Close() error {
	r.stall.Stop()
	defer r.cancel(nil)
	return r.ReadCloser.Close()
}

// explain says in terms of images what a registry's error means. It keeps
// the error, so that retry sees what it is.
func (c *registryClient) explain(err error) error {
	reg := c.repo.RegistryStr()
	var te *transport.Error
	switch {
	case errors.As(err, &te) && te.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %s does not have it: check name and tag: %w", ErrUnknown, reg, err)
	case errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden):
		return fmt.Errorf("%w: %s does not have it, or wants other credentials: check the name, or `docker login %s`: %w", ErrUnauthorized, reg, reg, err)
	case isPlainHTTP(err):
		return fmt.Errorf("%w: %s: allow it as insecure, if the network in between is trusted: %w", ErrPlainHTTP, reg, err)
	case errors.As(err, &te), errors.Is(err, context.Canceled), errors.Is(err, ErrTooLarge), errors.Is(err, ErrUnauthorized), errors.Is(err, ErrClosed):
		return err
	}
	return fmt.Errorf("%w: %s: check name, network and proxy: %w", ErrUnreachable, reg, err)
}
