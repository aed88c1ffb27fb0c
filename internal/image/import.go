package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Import brings an image into the store from an OCI layout (a directory or a
// tar file) or from a `docker save` archive, gzipped or not. ref names it in
// the store, and selects it where the file holds several; "" takes the name
// in the file.
func (s *Store) Import(ctx context.Context, file, ref string) (*Image, error) {
	return s.ImportProgress(ctx, file, ref, func(Progress) {})
}

// ImportProgress is Import that says how far it is.
func (s *Store) ImportProgress(ctx context.Context, file, ref string, progress func(Progress)) (*Image, error) {
	img, err := s.importFile(ctx, file, ref, progress)
	if err != nil {
		return nil, fmt.Errorf("importing %s: %w", file, err)
	}
	return img, nil
}

func (s *Store) importFile(ctx context.Context, file, ref string, progress func(Progress)) (*Image, error) {
	canonical := ""
	if ref != "" {
		parsed, err := s.parseRef(ref)
		if err != nil {
			return nil, err
		}
		canonical = parsed.Name()
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	var all files
	if st.IsDir() {
		root, err := os.OpenRoot(file)
		if err != nil {
			return nil, err
		}
		all = dirFiles{root}
	} else {
		if !st.Mode().IsRegular() {
			return nil, fmt.Errorf("%w: neither a file nor a directory", ErrNotImage)
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		if all, err = s.openTar(ctx, f); err != nil {
			return nil, err
		}
	}
	defer all.close()
	switch {
	case all.has("index.json"):
		return s.importLayout(ctx, all, canonical, progress)
	case all.has("manifest.json"):
		return s.importDocker(ctx, all, canonical, progress)
	}
	return nil, fmt.Errorf("%w: neither an OCI layout (no index.json) nor a `docker save` archive (no manifest.json)", ErrNotImage)
}

// importLayout takes an image from an OCI layout.
func (s *Store) importLayout(ctx context.Context, all files, canonical string, progress func(Progress)) (*Image, error) {
	raw, err := readSmall(all, "index.json")
	if err != nil {
		return nil, err
	}
	x, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: index.json does not parse: %w", ErrNotImage, err)
	}
	d, err := s.selectDescriptor(x, raw, canonical)
	if err != nil {
		return nil, err
	}
	if canonical == "" {
		if canonical = s.nameIn(d); canonical == "" {
			return nil, fmt.Errorf("%w: the file does not name its image: give a name", ErrBadReference)
		}
	}
	blob := func(h v1.Hash) string { return "blobs/sha256/" + h.Hex }
	for range 4 {
		if err := checkDigest(d.Digest); err != nil {
			return nil, err
		}
		if raw, err = readSmall(all, blob(d.Digest)); err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != d.Digest.Hex {
			return nil, fmt.Errorf("%w: manifest %s", ErrCorrupt, d.Digest)
		}
		t, err := manifestType(raw, d.MediaType)
		if err != nil {
			return nil, err
		}
		if t.IsIndex() {
			if d, err = choose(raw, s.cfg.Platform); err != nil {
				return nil, err
			}
			continue
		}
		return s.ingest(ctx, canonical, raw, t, openFrom(all, blob), progress)
	}
	return nil, fmt.Errorf("%w: indexes nested too deep", ErrNotImage)
}

// openFrom is a blobFunc of files.
func openFrom(all files, path func(v1.Hash) string) blobFunc {
	return func(_ context.Context, d v1.Descriptor, _ int64) (io.ReadCloser, int64, error) {
		r, _, err := all.open(path(d.Digest))
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: blob %s is missing", ErrNotImage, d.Digest)
		}
		if err != nil {
			return nil, 0, permanent(err)
		}
		return localReader{r}, 0, nil
	}
}

// localReader marks errors of reading a file as not worth a retry.
type localReader struct{ io.ReadCloser }

func (l localReader) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = permanent(err)
	}
	return n, err
}

// nameIn is the canonical name that an index entry carries, if any.
func (s *Store) nameIn(d v1.Descriptor) string {
	for _, key := range []string{"io.containerd.image.name", annotationRef} {
		if n := d.Annotations[key]; n != "" {
			if parsed, err := s.parseRef(n); err == nil {
				return parsed.Name()
			}
		}
	}
	return ""
}

// selectDescriptor finds the image that is meant in an index.json.
func (s *Store) selectDescriptor(x *v1.IndexManifest, raw []byte, canonical string) (v1.Descriptor, error) {
	var names []string
	for _, d := range x.Manifests {
		n := s.nameIn(d)
		if n != "" && n == canonical {
			return d, nil
		}
		if n != "" {
			names = append(names, shortRef(n))
		}
	}
	if len(x.Manifests) == 1 {
		return x.Manifests[0], nil
	}
	if len(names) > 1 {
		return v1.Descriptor{}, fmt.Errorf("%w: the file holds several images, say which: %.500s", ErrBadReference, strings.Join(names, ", "))
	}
	return choose(raw, s.cfg.Platform)
}

// importDocker takes an image from a `docker save` archive without an OCI
// index. Layers that are uncompressed stay so in the store: compressing them
// would cost seconds and save space for what will be read once.
func (s *Store) importDocker(ctx context.Context, all files, canonical string, progress func(Progress)) (*Image, error) {
	raw, err := readSmall(all, "manifest.json")
	if err != nil {
		return nil, err
	}
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &entries); err != nil || len(entries) == 0 {
		return nil, fmt.Errorf("%w: manifest.json is not that of `docker save`", ErrNotImage)
	}
	chosen, names := -1, []string{}
	for i, e := range entries {
		for _, tag := range e.RepoTags {
			parsed, err := s.parseRef(tag)
			if err != nil {
				continue
			}
			names = append(names, tag)
			if parsed.Name() == canonical || canonical == "" && len(entries) == 1 {
				canonical, chosen = parsed.Name(), i
			}
		}
	}
	switch {
	case chosen < 0 && len(entries) > 1:
		return nil, fmt.Errorf("%w: the file holds several images, say which: %.500s", ErrBadReference, strings.Join(names, ", "))
	case chosen < 0 && canonical == "":
		return nil, fmt.Errorf("%w: the file does not name its image: give a name", ErrBadReference)
	case chosen < 0:
		chosen = 0
	}
	e := entries[chosen]
	manifest, paths, err := s.dockerManifest(all, e.Config, e.Layers)
	if err != nil {
		return nil, err
	}
	open := openFrom(all, func(h v1.Hash) string { return paths[h] })
	return s.ingest(ctx, canonical, manifest, types.OCIManifestSchema1, open, progress)
}

// dockerLayer describes a layer of a `docker save` archive. Docker writes them
// uncompressed, other tools (crane, kaniko) gzipped: those are read once to
// learn their digest.
func dockerLayer(all files, name string, diff v1.Hash) (v1.Descriptor, error) {
	r, size, err := all.open(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer func() { _ = r.Close() }()
	buffered := bufio.NewReaderSize(r, 256<<10)
	if magic, err := buffered.Peek(2); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: diff, Size: size}, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, buffered); err != nil {
		return v1.Descriptor{}, fmt.Errorf("read layer %s: %w", name, err)
	}
	return v1.Descriptor{
		MediaType: types.OCILayer, Size: size, Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))},
	}, nil
}

// dockerManifest makes the manifest that a `docker save` archive lacks: the
// digests of uncompressed layers are in the config.
func (s *Store) dockerManifest(all files, configPath string, layers []string) ([]byte, map[v1.Hash]string, error) {
	rawConfig, err := readSmall(all, configPath)
	if err != nil {
		return nil, nil, err
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(rawConfig))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: its config does not parse: %w", ErrNotImage, err)
	}
	if len(config.RootFS.DiffIDs) != len(layers) {
		return nil, nil, fmt.Errorf("%w: %d layers but %d diff_ids", ErrNotImage, len(layers), len(config.RootFS.DiffIDs))
	}
	sum := sha256.Sum256(rawConfig)
	configHash := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	paths := map[v1.Hash]string{configHash: configPath}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: configHash, Size: int64(len(rawConfig))},
		Layers: []v1.Descriptor{},
	}
	for i, layer := range layers {
		d, err := dockerLayer(all, layer, config.RootFS.DiffIDs[i])
		if err != nil {
			return nil, nil, err
		}
		paths[d.Digest] = layer
		m.Layers = append(m.Layers, d)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, nil, fmt.Errorf("making a manifest: %w", err)
	}
	return raw, paths, nil
}
