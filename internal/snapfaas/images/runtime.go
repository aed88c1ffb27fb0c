package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skep-dev/skep/internal/image/build"
	"github.com/skep-dev/skep/internal/image/erofs"
	"github.com/skep-dev/skep/internal/snapfaas/runtimes"
)

// RuntimeOptions of BuildRuntime.
type RuntimeOptions struct {
	Options
	// Name is one of runtimes.Names.
	Name string
	// App, if set, is the folder of an app that becomes part of the image:
	// for "fullapp" snapshots.
	App string
	// Packages are Debian packages to install besides the language. Not for go.
	Packages []string
}

// BuildRuntime makes a runtime image.
func BuildRuntime(ctx context.Context, o RuntimeOptions) error {
	source, err := runtimes.Source(o.Name)
	if err != nil {
		return err
	}
	if o.App != "" { // before the work begins
		if _, err := planApp(o.App, o.Name); err != nil {
			return err
		}
	}
	if len(o.Packages) > 0 {
		source["apt.txt"] = []byte(strings.Join(o.Packages, "\n"))
	}
	return o.write(ctx, func(b *erofs.Builder) error { return o.addRuntime(ctx, b, source) })
}

// addRuntime builds the language's program, and adds it, its base and the app.
func (o RuntimeOptions) addRuntime(ctx context.Context, b *erofs.Builder, source map[string][]byte) (err error) {
	dir, err := os.MkdirTemp("", "skep-runtime-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, text := range source {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	img, err := build.Build(ctx, o.toBuild(dir, languages[o.Name]))
	if err != nil {
		return fmt.Errorf("build the runtime %s: %w", o.Name, err)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if err := addLayers(ctx, b, img, 0, nil); err != nil {
		return err
	}
	entry, err := entryLayer(img)
	if err != nil {
		return err
	}
	if err := b.AddLayer(ctx, entry); err != nil || o.App == "" {
		return err
	}
	return o.addApp(ctx, b, o.App, o.Name, "srv/")
}

// addLayers adds an image's layers but for the first skip ones; rename, if
// set, moves their entries.
func addLayers(ctx context.Context, b *erofs.Builder, img v1.Image, skip int, rename func(string) (string, bool)) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers[min(skip, len(layers)):] {
		r, err := l.Uncompressed()
		if err != nil {
			return err
		}
		in := io.Reader(r)
		if rename != nil {
			pr, pw := io.Pipe()
			go func() { pw.CloseWithError(renamed(r, pw, rename)) }()
			in = pr
			err = b.AddLayer(ctx, in)
			pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		} else {
			err = b.AddLayer(ctx, in)
		}
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// renamed copies a tar stream with other names; entries for which rename says
// no are left out.
func renamed(r io.Reader, w io.Writer, rename func(string) (string, bool)) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		name, ok := rename(strings.TrimSuffix(path.Clean(h.Name), "/"))
		if !ok {
			continue
		}
		h.Name = name
		if h.Typeflag == tar.TypeLink {
			if h.Linkname, ok = rename(path.Clean(h.Linkname)); !ok {
				return fmt.Errorf("%s: link to what is left out", name)
			}
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
}

// entryLayer is the layer with what the tools start, and the mount point.
func entryLayer(img v1.Image) (io.Reader, error) {
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if len(c.Config.Entrypoint) == 0 {
		return nil, errors.New("the image has no entrypoint")
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		h.Format = tar.FormatPAX
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = io.WriteString(w, content)
		}
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "srv/", Mode: 0o755}, "")
	name := strings.TrimPrefix(RuntimePath, "/")
	add(tar.Header{Typeflag: tar.TypeDir, Name: path.Dir(name) + "/", Mode: 0o755}, "")
	if len(c.Config.Entrypoint) == 1 { // it needs no shell, and may have none
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: c.Config.Entrypoint[0], Mode: 0o777}, "")
	} else {
		var script strings.Builder
		script.WriteString("#!/bin/sh\n")
		for _, e := range c.Config.Env {
			if key, value, ok := strings.Cut(e, "="); ok && key != "PORT" {
				fmt.Fprintf(&script, "export %s=%s\n", key, quote(value))
			}
		}
		script.WriteString("exec")
		for _, a := range c.Config.Entrypoint {
			script.WriteString(" " + quote(a))
		}
		script.WriteString("\n")
		add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755}, script.String())
	}
	if err == nil {
		err = w.Close()
	}
	return &buf, err
}

// quote makes one word of the shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
