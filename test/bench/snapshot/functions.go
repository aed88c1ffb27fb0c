package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/image/build"
	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/test/skeptest"
)

// function is one of those that are measured.
type function struct {
	name   string
	title  string
	dir    string // of its source, below the repository's functions
	memory int64  // its limit, bytes

	rootfs, rootfsNoXattrs string
	process                sandbox.Process
}

const mib = 1 << 20

// Names of functions that the aims speak of.
const (
	fnHello  = "hello"
	fnPython = "python"
	fnNumpy  = "numpy"
	fnBig    = "300mb"
)

// functions are all there are, in the order of the tables.
func functions() []*function {
	return []*function{
		{name: fnHello, title: "hello (Go)", dir: "hello/go", memory: 128 * mib},
		{name: fnPython, title: "Python http+json", dir: "bench/python-json", memory: 128 * mib},
		{name: fnNumpy, title: "Python+numpy", dir: "bench/python-numpy", memory: 256 * mib},
		{name: fnBig, title: "Python 300 MB", dir: "bench/python-300mb", memory: 512 * mib},
		{name: "node", title: "Node", dir: "hello/node", memory: 256 * mib},
		{name: "java", title: "Java", dir: "hello/java", memory: 256 * mib},
	}
}

// build makes the function's image and root file system, of which most are in
// the user's cache after the first time.
func (f *function) build(ctx context.Context, w *world, progress func(string)) (release func(), err error) {
	root, err := skeptest.Root()
	if err != nil {
		return nil, err
	}
	img, err := build.Build(ctx, build.Options{Dir: filepath.Join(root, "functions", f.dir), CacheDir: w.buildCache, Progress: progress})
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", f.dir, err)
	}
	defer img.Close()
	stored, err := w.images.Add(ctx, img, "bench/"+strings.ReplaceAll(f.dir, "/", "-")+":latest")
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", f.dir, err)
	}
	used, release, err := w.images.Use(ctx, stored.Digest)
	if err != nil {
		return nil, err
	}
	f.use(used)
	return release, nil
}

func (f *function) use(img *image.Image) {
	f.rootfs, f.rootfsNoXattrs = img.Rootfs, img.RootfsNoXattrs
	c := img.Config
	f.process = sandbox.Process{
		Args: append(append([]string(nil), c.Entrypoint...), c.Cmd...),
		Env:  append(append([]string(nil), c.Env...), fmt.Sprint("PORT=", port)),
		Cwd:  c.WorkingDir,
		User: c.User,
	}
}
