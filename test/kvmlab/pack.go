package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/erofs/go-erofs"
)

// pack is the machine's root file system: files of this machine under their
// own names, and some of ours.
type pack struct {
	dirs  map[string]bool
	links map[string]string // target by path
	files map[string]string // the file on this machine, by path
	texts map[string][]byte
}

func newPack() *pack {
	return &pack{dirs: map[string]bool{}, links: map[string]string{}, files: map[string]string{}, texts: map[string][]byte{}}
}

func (p *pack) dir(path string) {
	for ; path != "/" && path != "."; path = filepath.Dir(path) {
		p.dirs[path] = true
	}
}

// put packs the file src as path.
func (p *pack) put(path, src string) {
	p.dir(filepath.Dir(path))
	p.files[path] = src
}

func (p *pack) text(path string, content []byte) {
	p.dir(filepath.Dir(path))
	p.texts[path] = content
}

// host packs a file or a tree of this machine under its own name, and the
// symbolic links that lead there.
func (p *pack) host(path string) error {
	real, err := p.follow(path, 0)
	if err != nil {
		return err
	}
	return filepath.WalkDir(real, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			p.dir(name)
		case d.Type().IsRegular():
			p.put(name, name)
		case d.Type()&fs.ModeSymlink != 0 && name != real:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			p.links[name] = target
		}
		return nil
	})
}

// follow resolves a path's symbolic links, packs them, and returns where they
// lead.
func (p *pack) follow(path string, depth int) (string, error) {
	if depth > 40 {
		return "", fmt.Errorf("pack %s: too many symbolic links", path)
	}
	at := "/"
	parts := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	for i, part := range parts {
		next := filepath.Join(at, part)
		info, err := os.Lstat(next)
		if err != nil {
			return "", fmt.Errorf("pack %s: %w", path, err)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", fmt.Errorf("pack %s: %w", path, err)
		}
		p.dir(at)
		p.links[next] = target
		if !filepath.IsAbs(target) {
			target = filepath.Join(at, target)
		}
		return p.follow(filepath.Join(append([]string{target}, parts[i+1:]...)...), depth+1)
	}
	return at, nil
}

// libraryDirs is where the dynamic linker looks, on Debian's amd64.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib", "/lib"}

// program packs a program, or a library, with all that it is linked with.
func (p *pack) program(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	_, done := p.files[real]
	if err := p.host(path); err != nil || done {
		return err
	}
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	defer f.Close() //nolint:errcheck // read only
	var needs []string
	if s := f.Section(".interp"); s != nil {
		b, err := s.Data()
		if err != nil {
			return fmt.Errorf("pack %s: %w", path, err)
		}
		needs = append(needs, strings.TrimRight(string(b), "\x00"))
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	runpath, err := f.DynString(elf.DT_RUNPATH)
	if err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	for _, name := range libraries {
		lib, err := findLibrary(name, runpath)
		if err != nil {
			return fmt.Errorf("pack %s: %w", path, err)
		}
		needs = append(needs, lib)
	}
	for _, n := range needs {
		if err := p.program(n); err != nil {
			return err
		}
	}
	return nil
}

func findLibrary(name string, runpath []string) (string, error) {
	for _, d := range slices.Concat(runpath, libraryDirs) {
		path := filepath.Join(d, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %s: not found in %s", name, strings.Join(libraryDirs, ", "))
}

// write writes the image.
func (p *pack) write(path string) (err error) {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := erofs.Create(out)
	for _, d := range slices.Sorted(maps.Keys(p.dirs)) {
		if _, isLink := p.links[d]; isLink {
			continue
		}
		if err := w.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("pack %s: %w", d, err)
		}
	}
	for name, target := range p.links {
		if err := w.Symlink(target, name); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	for name, src := range p.files {
		if err := writeHostFile(w, name, src); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	for name, text := range p.texts {
		if err := writeFile(w, name, strings.NewReader(string(text)), 0o644); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	return w.Close()
}

func writeHostFile(w *erofs.Writer, name, src string) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return writeFile(w, name, f, info.Mode().Perm())
}

func writeFile(w *erofs.Writer, name string, r io.Reader, mode fs.FileMode) error {
	f, err := w.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(mode), f.Close())
}
