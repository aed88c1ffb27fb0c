package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/image/build/afterrestore"
)

// baseRecipe counts changes to how bases are made; older ones are not used.
const baseRecipe = 3

// baseSpec is all that a base depends on but the versions of packages.
type baseSpec struct {
	Recipe   int      `json:"recipe"`
	Runtime  Runtime  `json:"runtime"`
	Packages []string `json:"packages"`
	Extra    []string `json:"extra,omitempty"` // of apt.txt
	Suite    string   `json:"suite"`
	Arch     string   `json:"arch"`
	Sources  []string `json:"sources,omitempty"` // Options.AptSources
	// AfterRestore is afterrestore.Digest: bases hold those files.
	AfterRestore string `json:"after_restore"`
}

func (s baseSpec) key() (string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return string(s.Runtime) + "-" + hex.EncodeToString(sum[:8]), nil
}

// baseMeta is what is kept beside a base's layer.
type baseMeta struct {
	Spec    baseSpec   `json:"spec"`
	Layer   layerFacts `json:"layer"`
	Version string     `json:"version"` // of the language: "3.11", "17"
	Made    time.Time  `json:"made"`
}

type base struct {
	layer   *fileLayer
	version string
}

const (
	layerFile = "layer.tar.gz"
	metaFile  = "base.json"
)

// base gets the base image of a runtime: from the cache, or made now. Builds
// that want the same one at the same time, in any process, wait for each other.
func (j *job) base(ctx context.Context, packages []string) (*base, error) {
	extra, err := aptPackages(j.Dir)
	if err != nil {
		return nil, err
	}
	suite, err := hostCodename()
	if err != nil {
		return nil, err
	}
	spec := baseSpec{Recipe: baseRecipe, AfterRestore: afterrestore.Digest(), Runtime: j.Runtime, Packages: packages, Extra: extra,
		Suite: suite, Arch: debianArch[runtime.GOARCH], Sources: j.AptSources}
	key, err := spec.key()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(j.CacheDir, "bases", key)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("cache of bases: %w", err)
	}
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return nil, fmt.Errorf("wait for base %s: %w", key, err)
	}
	defer unlock()
	if !j.RefreshBase {
		b, err := openBase(dir)
		if err == nil {
			j.reused = true
			return b, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(j.Log, "base %s is not usable and made again: %v\n", key, err)
		}
	}
	made, err := j.makeBase(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("make base image: %w", err)
	}
	// What is replaced goes with the work folder.
	if err := os.Rename(dir, filepath.Join(j.work, "replaced")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace base: %w", err)
	}
	if err := os.Rename(made, dir); err != nil {
		return nil, fmt.Errorf("keep base: %w", err)
	}
	return openBase(dir)
}

// openBase opens a kept base after checking that it is what was kept.
func openBase(dir string) (_ *base, err error) {
	b, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return nil, err
	}
	var m baseMeta
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", metaFile, err)
	}
	path := filepath.Join(dir, layerFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	sum := &measure{w: io.Discard, h: sha256.New()}
	if _, err := io.Copy(sum, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if sum.n != m.Layer.Size || sum.hash() != m.Layer.Digest {
		return nil, errors.Join(fmt.Errorf("%s is damaged: %d bytes, %s; want %d, %s",
			path, sum.n, sum.hash(), m.Layer.Size, m.Layer.Digest), f.Close())
	}
	return &base{layer: &fileLayer{path: path, facts: m.Layer, file: f}, version: m.Version}, nil
}

// unpack puts the base's files below a new folder of the work folder.
func (j *job) unpackBase(ctx context.Context, b *base) (string, error) {
	dir := filepath.Join(j.work, "base")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	r, err := b.layer.Uncompressed()
	if err != nil {
		return "", err
	}
	defer r.Close()
	if err := unpackTree(ctx, r, dir, keepAll); err != nil {
		return "", fmt.Errorf("unpack base: %w", err)
	}
	return dir, nil
}

// lockFile takes the lock of a file, which other processes honour as well.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// flock cannot be interrupted by a context, so it is asked for again and again.
	wait := 10 * time.Millisecond
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-time.After(wait):
			wait = min(2*wait, time.Second)
		}
	}
}
