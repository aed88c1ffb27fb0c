package gvisor

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/internal/sandbox"
)

// annotationTar names a tar file with the first content of the writable layer.
const annotationTar = "dev.gvisor.tar.rootfs.upper"

// mountsToTar replaces the spec's bind mounts of files by copies in the
// writable layer. A bind mount takes a second process, the gofer, which holds
// memory and the host's files for as long as the sandbox lives.
func mountsToTar(s *sandbox.Spec, spec *specs.Spec, image fs.FS) error {
	var mounts []specs.Mount
	files := map[string]string{} // host's path by path in the image
	for _, m := range spec.Mounts {
		if m.Type == "bind" {
			files[strings.TrimPrefix(path.Clean(m.Destination), "/")] = m.Source
		} else {
			mounts = append(mounts, m)
		}
	}
	if len(files) == 0 {
		return nil
	}
	b, err := tarOf(files, image)
	if err != nil {
		return err
	}
	name := filepath.Join(s.Dir, "upper.tar")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		return fmt.Errorf("write the sandbox's own files: %w", err)
	}
	spec.Annotations[annotationTar] = name
	spec.Mounts = mounts
	return nil
}

// tarOf makes a tar archive of files, with the directories that they are in.
// Those look as they do in the image, because they come to lie on top of its
// own. A file in a directory that the image has something else for is left out.
func tarOf(files map[string]string, image fs.FS) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	done := map[string]bool{}
	var mkdir func(dir string) (bool, error)
	mkdir = func(dir string) (bool, error) {
		if ok, seen := done[dir]; seen {
			return ok, nil
		}
		if dir != "." {
			if ok, err := mkdir(path.Dir(dir)); !ok {
				return false, err
			}
		}
		h := &tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}
		if dir != "." {
			h.Name += dir + "/"
		}
		if fi, err := fs.Stat(image, dir); err == nil {
			if done[dir] = fi.IsDir(); !fi.IsDir() {
				return false, nil
			}
			h.Mode, h.ModTime = int64(fi.Mode().Perm()), fi.ModTime()
		}
		done[dir] = true
		return true, w.WriteHeader(h)
	}
	for name, source := range files {
		content, err := os.ReadFile(source)
		if err != nil {
			return nil, fmt.Errorf("read the sandbox's own files: %w", err)
		}
		ok, err := mkdir(path.Dir(name))
		if err != nil {
			return nil, fmt.Errorf("archive %s: %w", name, err)
		}
		if !ok {
			continue
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: 0o644, Size: int64(len(content))}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("archive %s: %w", name, err)
		}
		if _, err := w.Write(content); err != nil {
			return nil, fmt.Errorf("archive %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	return b.Bytes(), nil
}
