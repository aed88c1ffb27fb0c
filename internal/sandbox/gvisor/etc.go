package gvisor

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/json"
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

// withoutBinds takes the bind mounts of files out of the spec, and returns the
// host's paths of the files by their paths in the image. A bind mount takes a
// second process, the gofer, which holds memory and the host's files for as
// long as the sandbox lives.
func withoutBinds(spec *specs.Spec) map[string]string {
	var mounts []specs.Mount
	files := map[string]string{}
	for _, m := range spec.Mounts {
		if m.Type == "bind" {
			files[strings.TrimPrefix(path.Clean(m.Destination), "/")] = m.Source
		} else {
			mounts = append(mounts, m)
		}
	}
	spec.Mounts = mounts
	return files
}

// setUpper puts copies of files into the writable layer of a new sandbox.
func setUpper(s *sandbox.Spec, spec *specs.Spec, files map[string]string, image fs.FS) error {
	b, err := tarOf(files, image)
	if err != nil {
		return err
	}
	name := filepath.Join(s.Dir, "upper.tar")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		return fmt.Errorf("write the sandbox's own files: %w", err)
	}
	spec.Annotations[annotationTar] = name
	return nil
}

// setIdentity has copies of files put into a restored sandbox.
func setIdentity(spec *specs.Spec, files map[string]string) error {
	id := identity{}
	for name, source := range files {
		content, err := os.ReadFile(source)
		if err != nil {
			return fmt.Errorf("read the sandbox's own files: %w", err)
		}
		id["/"+name] = string(content)
	}
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode the sandbox's own files: %w", err)
	}
	spec.Annotations[annotationIdentity] = string(b)
	return nil
}

// newMachineID is the content of an /etc/machine-id: see machine-id(5).
func newMachineID() []byte {
	var id [16]byte
	_, _ = rand.Read(id[:])   // never fails, see crypto/rand
	id[6] = id[6]&0x0f | 0x40 // a UUID of version 4, as systemd's
	id[8] = id[8]&0x3f | 0x80
	return fmt.Appendf(nil, "%x\n", id[:])
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
