package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const maxLayers = 1000

// record is an image as its manifest and config describe it.
type record struct {
	manifest v1.Descriptor
	layers   []v1.Descriptor
	config   *v1.ConfigFile
	blobs    []v1.Hash // manifest, config, layers
	size     int64
	key      string // of its root file system
}

// manifestType finds out what a manifest is, where no one said.
func manifestType(raw []byte, said types.MediaType) (types.MediaType, error) {
	var m struct {
		MediaType types.MediaType   `json:"mediaType"`
		Config    *json.RawMessage  `json:"config"`
		Layers    []json.RawMessage `json:"layers"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", fmt.Errorf("%w: its manifest is not JSON: %w", ErrNotImage, err)
	}
	t := m.MediaType
	if t == "" {
		t = said
	}
	switch {
	case t.IsIndex() && m.Config == nil:
		return t, nil
	case t.IsImage() && m.Manifests == nil:
		return t, nil
	case t == types.DockerManifestSchema1 || t == types.DockerManifestSchema1Signed:
		return "", fmt.Errorf("%w: its manifest has Docker's old schema 1: push it again with a current docker or skopeo", ErrNotImage)
	case m.Manifests != nil && m.Config == nil:
		return types.OCIImageIndex, nil
	case m.Config != nil && m.Layers != nil && m.Manifests == nil:
		return types.OCIManifestSchema1, nil
	}
	return "", fmt.Errorf("%w: media type %q", ErrNotImage, t)
}

// parseManifest checks an image manifest from the outside.
func (s *Store) parseManifest(raw []byte) (*v1.Manifest, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: its manifest does not parse: %w", ErrNotImage, err)
	}
	if t := m.Config.MediaType; t != types.OCIConfigJSON && t != types.DockerConfigJSON {
		return nil, fmt.Errorf("%w: its config has media type %q (a chart, a signature or another artifact)", ErrNotImage, t)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers, at most %d are allowed", ErrTooLarge, len(m.Layers), maxLayers)
	}
	if m.Config.Size < 0 || m.Config.Size > maxManifestBytes {
		return nil, fmt.Errorf("%w: config of %d bytes", ErrTooLarge, m.Config.Size)
	}
	total := int64(0)
	for _, l := range m.Layers {
		if _, err := compressionOf(l.MediaType); err != nil {
			return nil, err
		}
		if l.Size < 0 || l.Size > s.cfg.MaxImageBytes-total {
			return nil, fmt.Errorf("%w: its layers have more than %d bytes", ErrTooLarge, s.cfg.MaxImageBytes)
		}
		total += l.Size
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := checkDigest(d.Digest); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// parseConfig checks an image config against its manifest and our platform.
func (s *Store) parseConfig(raw []byte, m *v1.Manifest) (*v1.ConfigFile, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: its config does not parse: %w", ErrNotImage, err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%w: %d layers but %d diff_ids", ErrNotImage, len(m.Layers), len(c.RootFS.DiffIDs))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, err
		}
	}
	want := s.cfg.Platform
	if c.OS != want.OS || c.Architecture != want.Architecture {
		return nil, fmt.Errorf("%w: it is for %s/%s, needed is %s/%s: build or choose one for that",
			ErrWrongPlatform, orUnknown(c.OS), orUnknown(c.Architecture), want.OS, want.Architecture)
	}
	return c, nil
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// choose finds the platform's image in an index.
func choose(raw []byte, want v1.Platform) (v1.Descriptor, error) {
	x, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("%w: its index does not parse: %w", ErrNotImage, err)
	}
	var have []string
	var unnamed []v1.Descriptor
	for _, d := range x.Manifests {
		if !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue
		}
		if d.Platform == nil {
			unnamed = append(unnamed, d)
			continue
		}
		if d.Platform.OS == want.OS && d.Platform.Architecture == want.Architecture {
			return d, nil
		}
		if d.Platform.OS != "unknown" && len(have) < 20 { // attestations are "unknown"
			have = append(have, d.Platform.OS+"/"+d.Platform.Architecture)
		}
	}
	if len(unnamed) == 1 {
		return unnamed[0], nil // its config will tell
	}
	if len(have) == 0 {
		return v1.Descriptor{}, fmt.Errorf("%w: an index without images", ErrNotImage)
	}
	return v1.Descriptor{}, fmt.Errorf("%w: it is for %s, needed is %s/%s: build or choose one for that",
		ErrWrongPlatform, strings.Join(have, ", "), want.OS, want.Architecture)
}

// rootfsKey names the root file system of an ordered list of layers.
func rootfsKey(diffIDs []v1.Hash) string {
	h := sha256.New()
	_, _ = h.Write([]byte("skep-erofs-1\n")) // a new number for a new layout
	for _, d := range diffIDs {
		_, _ = fmt.Fprintln(h, d)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// load reads what the store has about a manifest or an index. Layers may
// still be missing.
func (s *Store) load(digest v1.Hash) (*record, error) {
	d := v1.Descriptor{Digest: digest}
	var via []v1.Hash
	for range 4 { // an index may point to an index, but not for ever
		raw, err := s.readBlob(d.Digest)
		if err != nil {
			return nil, err
		}
		t, err := manifestType(raw, d.MediaType)
		if err != nil {
			return nil, err
		}
		d.MediaType, d.Size = t, int64(len(raw))
		via = append(via, d.Digest)
		if t.IsIndex() {
			if d, err = choose(raw, s.cfg.Platform); err != nil {
				return nil, err
			}
			continue
		}
		m, err := s.parseManifest(raw)
		if err != nil {
			return nil, err
		}
		rawConfig, err := s.readBlob(m.Config.Digest)
		if err != nil {
			return nil, err
		}
		c, err := s.parseConfig(rawConfig, m)
		if err != nil {
			return nil, err
		}
		r := &record{manifest: d, layers: m.Layers, config: c, blobs: append(via, m.Config.Digest), size: d.Size + m.Config.Size, key: rootfsKey(c.RootFS.DiffIDs)}
		for _, l := range m.Layers {
			r.blobs = append(r.blobs, l.Digest)
			r.size += l.Size
		}
		return r, nil
	}
	return nil, fmt.Errorf("%w: indexes nested too deep", ErrNotImage)
}

func (s *Store) rootfsPath(key string) string   { return s.path("rootfs", key+".erofs") }
func (s *Store) strippedPath(key string) string { return s.path("rootfs", key+".noxattr.erofs") }

// image describes a record under a canonical name.
func (s *Store) image(r *record, ref string, added string) *Image {
	img := &Image{
		Ref: shortRef(ref), Digest: r.manifest.Digest.String(),
		Rootfs: s.rootfsPath(r.key), RootfsNoXattrs: s.rootfsPath(r.key),
		Config: configOf(r.config.Config), Platform: r.config.OS + "/" + r.config.Architecture,
		Size: r.size, Created: r.config.Created.Time,
	}
	img.Added, _ = time.Parse(time.RFC3339Nano, added)
	for _, path := range []string{img.Rootfs, s.strippedPath(r.key)} {
		st, err := os.Stat(path)
		if err != nil {
			continue
		}
		if path != img.Rootfs {
			img.RootfsNoXattrs = path
		} else if st.ModTime().After(img.Added) {
			img.LastUsed = st.ModTime()
		}
		img.RootfsSize += diskUse(st)
	}
	return img
}
