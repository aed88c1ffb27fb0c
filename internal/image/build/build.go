// Package build turns a folder of source into an OCI image, without a
// container engine: Go programs are linked statically onto an empty base,
// Python, Node.js and Java programs go on top of a small base made of Debian
// packages with mmdebstrap, built once and kept.
//
// Builds are reproducible: the same source, tool chain and base give the same
// digest.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	// DefaultTimeout bounds a build whose context has no deadline.
	DefaultTimeout = 20 * time.Minute
	// DefaultMaxSourceBytes bounds the source folder of a function.
	DefaultMaxSourceBytes = 512 << 20
	// UserID is the user and group every built image runs as.
	UserID = 65532
	// DefaultPort is the port a function listens on unless $PORT says otherwise.
	DefaultPort = 8080
)

// Options say what to build.
type Options struct {
	// Runtime is the language; empty means DetectRuntime(Dir).
	Runtime Runtime
	// Dir is the folder with the function's source. It is only read.
	Dir string
	// CacheDir keeps the base images and work files. It must not be writable by
	// others: programs of a base are run from it.
	CacheDir string
	// Progress, if set, is told each step as it begins.
	Progress func(step string)
	// Log, if set, gets the output of the tools that run.
	Log io.Writer
	// RefreshBase makes the base again, to take in Debian's updates.
	RefreshBase bool
	// AllowScripts lets dependencies run their own install scripts (npm) and
	// source builds (pip) on this machine, with this process's rights.
	AllowScripts bool
	// GoPackage is the main package within Dir, default ".". Go only.
	GoPackage string
	// JavaMain is the class to start of a Maven project whose jar names none.
	JavaMain string
	// AptSources are apt source files (.list or .sources) to make bases from,
	// instead of the Debian archives this machine's apt is configured with.
	AptSources []string
	// MaxSourceBytes bounds Dir; 0 means DefaultMaxSourceBytes.
	MaxSourceBytes int64
}

// Image is a built image. Its layers are files that Close removes: keep it open
// until the image is stored.
type Image struct {
	v1.Image
	// Runtime is the language it was built for.
	Runtime Runtime
	// BaseReused says that the base came from the cache.
	BaseReused bool

	release func() error
}

// Close frees the files behind the image.
func (i *Image) Close() error {
	if i.release == nil {
		return nil
	}
	release := i.release
	i.release = nil
	return release()
}

// job is one build under way.
type job struct {
	Options
	work   string    // temporary, removed with the image
	epoch  time.Time // of every file and of the image
	reused bool
}

// Build makes the image. It ends early, leaving nothing behind, when ctx does.
func Build(ctx context.Context, o Options) (_ *Image, err error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	epoch, err := sourceDateEpoch()
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(o.CacheDir, "work-")
	if err != nil {
		return nil, fmt.Errorf("make a work folder in cache dir: %w", err)
	}
	var r recipe
	defer func() {
		if err != nil {
			err = errors.Join(err, closeLayers(r.layers), removeTree(work))
		}
	}()
	j := &job{Options: o, work: work, epoch: epoch}
	switch o.Runtime {
	case Go:
		r, err = j.golang(ctx)
	case Python:
		r, err = j.python(ctx)
	case Node:
		r, err = j.node(ctx)
	case Java:
		r, err = j.java(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("build %s with runtime %s: %w", o.Dir, o.Runtime, err)
	}
	img, err := j.assemble(r)
	if err != nil {
		return nil, err
	}
	return &Image{Image: img, Runtime: o.Runtime, BaseReused: j.reused,
		release: func() error { return errors.Join(closeLayers(r.layers), removeTree(work)) }}, nil
}

func (o *Options) complete() error {
	if o.Dir == "" {
		return errors.New("source folder is not set")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return fmt.Errorf("source folder: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return fmt.Errorf("source folder: %w", err)
	}
	o.Dir = dir
	if st, err := os.Stat(o.Dir); err != nil {
		return fmt.Errorf("source folder: %w", err)
	} else if !st.IsDir() {
		return fmt.Errorf("source folder %s is not a folder", o.Dir)
	}
	if o.Runtime == "" {
		if o.Runtime, err = DetectRuntime(o.Dir); err != nil {
			return err
		}
	} else if o.Runtime, err = ParseRuntime(string(o.Runtime)); err != nil {
		return err
	}
	if o.CacheDir == "" {
		return errors.New("cache dir is not set")
	}
	if o.CacheDir, err = filepath.Abs(o.CacheDir); err != nil {
		return fmt.Errorf("cache dir: %w", err)
	}
	if err := os.MkdirAll(o.CacheDir, 0o700); err != nil {
		return fmt.Errorf("cache dir: %w", err)
	}
	if o.MaxSourceBytes == 0 {
		o.MaxSourceBytes = DefaultMaxSourceBytes
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if _, ok := debianArch[runtime.GOARCH]; !ok || runtime.GOOS != "linux" {
		return fmt.Errorf("no images for %s/%s: build on linux/amd64 or linux/arm64", runtime.GOOS, runtime.GOARCH)
	}
	return nil
}

// sourceDateEpoch is the time every file gets: $SOURCE_DATE_EPOCH as defined by
// reproducible-builds.org, or 1970.
func sourceDateEpoch() (time.Time, error) {
	s := os.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%q: want seconds since 1970", s)
	}
	return time.Unix(n, 0).UTC(), nil
}
