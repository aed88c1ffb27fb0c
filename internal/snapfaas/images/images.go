// Package images makes the two kinds of disk that SnapFaaS's tools boot from,
// as EROFS file systems: runtime images (a language, and the program of package
// runtimes) and app images (a function, mounted on /srv).
//
// Builds are reproducible, as those of package build are, which does the work.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/image/build"
	"github.com/skep-dev/skep/internal/image/erofs"
)

// RuntimePath is what the tools start in a runtime image.
const RuntimePath = "/usr/lib/skep/runtime"

// Options of a build.
type Options struct {
	// Out is the file to write; an older one is replaced when the new one is
	// whole.
	Out string
	// CacheDir keeps the base images, see build.Options.
	CacheDir string
	// Progress, if set, is told each step as it begins.
	Progress func(step string)
	// Log, if set, gets the output of the tools that run.
	Log io.Writer
}

// toBuild fills in what package build wants to know.
func (o Options) toBuild(dir string, r build.Runtime) build.Options {
	return build.Options{Runtime: r, Dir: dir, CacheDir: o.CacheDir, Progress: o.Progress, Log: o.Log}
}

// languages are package build's names of the tools' runtimes.
var languages = map[string]build.Runtime{
	"python3": build.Python, "nodejs": build.Node, "go": build.Go, "java": build.Java,
}

// write makes the image of what add adds.
func (o Options) write(ctx context.Context, add func(b *erofs.Builder) error) (err error) {
	out, err := filepath.Abs(o.Out)
	if err != nil {
		return err
	}
	if st, err := os.Stat(out); err == nil && st.IsDir() {
		return fmt.Errorf("output: %s is a folder: name a file", o.Out)
	}
	if _, err := os.Stat(filepath.Dir(out)); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*.tmp")
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	b := erofs.NewBuilder(f, erofs.Options{})
	if err := add(b); err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = b.Finish(ctx)
	// QEMU reads it as a user of its own.
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", o.Out, err)
	}
	return os.Rename(f.Name(), out)
}
