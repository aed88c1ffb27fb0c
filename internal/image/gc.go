package image

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// recentFor is how long a pushed blob waits for its manifest.
const recentFor = time.Hour

// Policy says what GC may remove besides garbage.
type Policy struct {
	// MaxBytes for blobs and root file systems together: the images used
	// longest ago go until the rest fits. 0 removes no images.
	MaxBytes int64
	// Keep, if not nil, spares images, such as those of services that are
	// scaled to zero. Images in use are always spared. It must not call the
	// store, which is locked meanwhile.
	Keep func(*Image) bool
}

// GCResult says what GC did.
type GCResult struct {
	Removed []string // names of images
	Freed   int64    // bytes on disk
	Used    int64    // bytes on disk, after
}

// GC removes what no image needs, and images as the policy allows.
func (s *Store) GC(ctx context.Context, p Policy) (GCResult, error) {
	s.uploads.removeIdle()
	s.mu.Lock()
	defer s.mu.Unlock()
	var res GCResult
	freed, err := s.sweep(ctx)
	res.Freed = freed
	if err != nil || p.MaxBytes <= 0 {
		res.Used = s.used()
		return res, err
	}
	var images []*Image
	keys := map[string]string{}
	for _, d := range s.index.entries {
		ref := d.Annotations[annotationRef]
		r, err := s.load(d.Digest)
		if err != nil {
			continue
		}
		img := s.image(r, ref, d.Annotations[annotationAdded])
		if isHold(d) || s.pins[r.manifest.Digest.String()] > 0 || p.Keep != nil && p.Keep(img) {
			continue
		}
		images = append(images, img)
		keys[img.Ref] = ref
	}
	last := func(i *Image) time.Time {
		if i.LastUsed.After(i.Added) {
			return i.LastUsed
		}
		return i.Added
	}
	slices.SortStableFunc(images, func(a, b *Image) int { return last(a).Compare(last(b)) })
	for _, img := range images {
		if res.Used = s.used(); res.Used <= p.MaxBytes {
			return res, nil
		}
		err := s.change(func(all []v1.Descriptor) []v1.Descriptor {
			return slices.DeleteFunc(all, func(d v1.Descriptor) bool { return d.Annotations[annotationRef] == keys[img.Ref] })
		})
		if err != nil {
			return res, err
		}
		res.Removed = append(res.Removed, img.Ref)
		freed, err := s.sweep(ctx)
		res.Freed += freed
		if err != nil {
			return res, err
		}
	}
	res.Used = s.used()
	return res, nil
}

// sweep removes blobs and root file systems that neither a name nor a pin
// needs. s.mu is held.
func (s *Store) sweep(ctx context.Context) (freed int64, err error) {
	live := map[string]bool{}
	for key := range s.pins {
		live[strings.TrimPrefix(key, "sha256:")] = true
	}
	for hex, at := range s.recent {
		if time.Since(at) > recentFor {
			delete(s.recent, hex)
		} else {
			live[hex] = true
		}
	}
	for _, d := range s.index.entries {
		s.mark(d.Digest, live, 0)
		if r, err := s.load(d.Digest); err == nil {
			live[r.key] = true
		}
	}
	for _, dir := range []string{"rootfs", "diffs", "blobs/sha256"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			return freed, fmt.Errorf("collecting garbage: %w", err)
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return freed, context.Cause(ctx)
			}
			key, _, _ := strings.Cut(e.Name(), ".")
			if live[key] {
				continue
			}
			if info, err := e.Info(); err == nil {
				freed += diskUse(info)
			}
			if err := os.Remove(s.path(dir, e.Name())); err != nil {
				return freed, fmt.Errorf("collecting garbage: %w", err)
			}
		}
	}
	return freed, nil
}

// mark marks all blobs reachable from a manifest or an index, other
// platforms' included.
func (s *Store) mark(h v1.Hash, live map[string]bool, depth int) {
	live[h.Hex] = true
	raw, err := s.readBlob(h)
	if err != nil || depth > 4 {
		return
	}
	t, err := manifestType(raw, "")
	if err != nil {
		return
	}
	if t.IsIndex() {
		if x, err := v1.ParseIndexManifest(strings.NewReader(string(raw))); err == nil {
			for _, d := range x.Manifests {
				s.mark(d.Digest, live, depth+1)
			}
		}
		return
	}
	if m, err := v1.ParseManifest(strings.NewReader(string(raw))); err == nil {
		live[m.Config.Digest.Hex] = true
		for _, l := range m.Layers {
			live[l.Digest.Hex] = true
		}
	}
}

// used is the space that the store takes, in bytes.
func (s *Store) used() int64 {
	var total int64
	for _, dir := range []string{"rootfs", "blobs/sha256"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				total += diskUse(info)
			}
		}
	}
	return total
}
