package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func (s *Store) serveManifest(w http.ResponseWriter, r *http.Request, repo, target string) error {
	sep := ":"
	if IsDigest(target) {
		sep = "@"
	}
	ref, err := s.parseRef(repo + sep + target)
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return s.getManifest(w, r, ref)
	case http.MethodPut:
		return s.putManifest(w, r, repo, ref)
	case http.MethodDelete:
		if err := s.deleteManifest(r.Context(), ref); err != nil {
			return err
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return errMethod
}

func (s *Store) getManifest(w http.ResponseWriter, r *http.Request, ref name.Reference) error {
	s.mu.Lock()
	d, ok := s.index.get(ref.Name())
	s.mu.Unlock()
	if digest, isDigest := ref.(name.Digest); isDigest && !ok {
		// Any manifest at hand: the parts of an index have no names.
		h, err := v1.NewHash(digest.DigestStr())
		if err != nil || !s.hasBlobForPush(h) {
			return fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "no manifest %s", digest.DigestStr())
		}
		d.Digest = h
	} else if !ok {
		return fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "no image %s", shortRef(ref.Name()))
	}
	raw, err := s.readBlob(d.Digest)
	if err != nil {
		return err
	}
	t, err := manifestType(raw, d.MediaType)
	if err != nil {
		return fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s is not a manifest", d.Digest)
	}
	w.Header().Set("Docker-Content-Digest", d.Digest.String())
	w.Header().Set("Content-Type", string(t))
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(raw)
	}
	return nil
}

// putManifest stores a manifest whose parts have all been pushed, and begins
// to make the image's root file system.
func (s *Store) putManifest(w http.ResponseWriter, r *http.Request, repo string, ref name.Reference) error {
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxManifestBytes+1))
	if err != nil {
		return fail(http.StatusBadRequest, "MANIFEST_INVALID", "reading it: %v", err)
	}
	if len(raw) > maxManifestBytes {
		return fmt.Errorf("%w: a manifest of more than %d bytes", ErrTooLarge, maxManifestBytes)
	}
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if d, ok := ref.(name.Digest); ok && d.DigestStr() != h.String() {
		return fmt.Errorf("%w: sent was %s, announced %s", ErrCorrupt, h, d.DigestStr())
	}
	t, err := manifestType(raw, types.MediaType(r.Header.Get("Content-Type")))
	if err != nil {
		return err
	}
	parts, err := s.parts(raw, t)
	if err != nil {
		return err
	}
	keys := []string{h.String()}
	for _, p := range parts {
		keys = append(keys, p.String())
	}
	defer s.pin(keys...)()
	for _, p := range parts {
		if !s.hasBlob(p) {
			return fail(http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", "push %s first", p)
		}
	}
	if _, err := s.putBytes(raw); err != nil {
		return err
	}
	// Parts of an index were pushed by digest before it; now it names them.
	partOf := func(o v1.Descriptor) bool {
		return slices.Contains(parts, o.Digest) && o.Annotations[annotationRef] == ref.Context().Name()+"@"+o.Digest.String()
	}
	s.mu.Lock()
	err = s.setRef(ref.Name(), v1.Descriptor{MediaType: t, Digest: h, Size: int64(len(raw))}, partOf)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.log.Info("image pushed", "ref", shortRef(ref.Name()), "digest", h.String())
	if _, isTag := ref.(name.Tag); isTag {
		s.prepareLater(r.Context(), ref.Name())
	}
	return created(w, fmt.Sprintf("/v2/%s/manifests/%s", repo, h), h)
}

// parts are the blobs that a manifest needs.
func (s *Store) parts(raw []byte, t types.MediaType) ([]v1.Hash, error) {
	var parts []v1.Hash
	if t.IsIndex() {
		x, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("%w: the index does not parse: %w", ErrNotImage, err)
		}
		if len(x.Manifests) > maxLayers {
			return nil, fmt.Errorf("%w: %d images in an index", ErrTooLarge, len(x.Manifests))
		}
		for _, d := range x.Manifests {
			parts = append(parts, d.Digest)
		}
	} else {
		m, err := s.parseManifest(raw)
		if err != nil {
			return nil, err
		}
		parts = append(parts, m.Config.Digest)
		for _, l := range m.Layers {
			parts = append(parts, l.Digest)
		}
	}
	for _, p := range parts {
		if err := checkDigest(p); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// prepareLater makes a pushed image's root file system in the background:
// its first use then need not wait.
func (s *Store) prepareLater(ctx context.Context, key string) {
	s.mu.Lock() // Close waits after taking it
	defer s.mu.Unlock()
	if s.stop.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.stop, cancel)
	s.wg.Go(func() {
		defer cancel()
		defer stop()
		_, release, err := s.Use(ctx, key)
		if err != nil {
			if !errors.Is(err, context.Canceled) && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotFound) {
				s.log.Warn("pushed image cannot be used", "ref", shortRef(key), "error", err)
			}
			return
		}
		release()
	})
}

// deleteManifest takes a name away, or all of a repository's names for a digest.
func (s *Store) deleteManifest(ctx context.Context, ref name.Reference) error {
	d, isDigest := ref.(name.Digest)
	if !isDigest {
		return s.Remove(ctx, ref.Name())
	}
	var names []string
	s.mu.Lock()
	for _, o := range s.index.entries {
		n := o.Annotations[annotationRef]
		if o.Digest.String() == d.DigestStr() && (strings.HasPrefix(n, ref.Context().Name()+":") || strings.HasPrefix(n, ref.Context().Name()+"@")) {
			names = append(names, n)
		}
	}
	s.mu.Unlock()
	if len(names) == 0 {
		return fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "no manifest %s", d.DigestStr())
	}
	for _, n := range names {
		if err := s.Remove(ctx, n); err != nil {
			return err
		}
	}
	return nil
}
