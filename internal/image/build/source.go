package build

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// maxSourceFiles bounds the number of files and folders of a function's source.
const maxSourceFiles = 100_000

// ignored are the names, anywhere in the source folder, that never get into an
// image: version control, what tools make again, and secrets kept beside code.
var ignored = []string{".git", ".hg", ".svn", ".DS_Store", ".env", ".venv", "venv", "__pycache__", ".pytest_cache", ".mypy_cache", "node_modules"}

// copySource copies the source folder to dst with plain modes, without ignored
// names and those in skip.
func (j *job) copySource(ctx context.Context, dst string, skip ...string) error {
	var files int
	var total int64
	err := filepath.WalkDir(j.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(j.Dir, path)
		if err != nil {
			return err
		}
		if rel == "." {
			return os.MkdirAll(dst, 0o755)
		}
		if slices.Contains(ignored, d.Name()) || slices.Contains(skip, rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if files++; files > maxSourceFiles {
			return fmt.Errorf("more than %d files", maxSourceFiles)
		}
		to := filepath.Join(dst, rel)
		switch d.Type() {
		case fs.ModeDir:
			return os.Mkdir(to, 0o755)
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if filepath.IsAbs(target) || !filepath.IsLocal(filepath.Join(filepath.Dir(rel), target)) {
				return fmt.Errorf("%s: symbolic link to %s, outside of the source folder", rel, target)
			}
			return os.Symlink(target, to)
		case 0:
			n, err := copyFile(path, to, j.MaxSourceBytes-total)
			total += n
			return err
		}
		return fmt.Errorf("%s is a %s: only files, folders and symbolic links can be in an image", rel, d.Type())
	})
	if err != nil {
		return fmt.Errorf("read source: %w", err)
	}
	return nil
}

// copyFile copies at most limit bytes; a larger file is an error.
func copyFile(from, to string, limit int64) (n int64, err error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return 0, err
	}
	mode := fs.FileMode(0o644)
	if st.Mode()&0o111 != 0 {
		mode = 0o755
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	if n, err = io.Copy(out, io.LimitReader(in, limit+1)); err != nil {
		return n, err
	}
	if n > limit {
		return n, fmt.Errorf("%s: source is larger than the limit", from)
	}
	return n, out.Chmod(mode) // whatever the umask
}

// stage makes a folder that becomes a layer, holding the folder dir (empty but
// with its parents), and returns both.
func (j *job) stage(name, dir string) (root, inner string, err error) {
	root = filepath.Join(j.work, name)
	inner = filepath.Join(root, dir)
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", "", err
	}
	for p := root; p != inner; {
		rel, err := filepath.Rel(p, inner)
		if err != nil {
			return "", "", err
		}
		p = filepath.Join(p, firstPart(rel))
		if err := os.Mkdir(p, 0o755); err != nil {
			return "", "", err
		}
		if err := os.Chmod(p, 0o755); err != nil {
			return "", "", err
		}
	}
	return root, inner, nil
}

func firstPart(rel string) string {
	for i := range len(rel) {
		if os.IsPathSeparator(rel[i]) {
			return rel[:i]
		}
	}
	return rel
}

// pack makes a staged folder a layer.
func (j *job) pack(ctx context.Context, root string) (*fileLayer, error) {
	return packTree(ctx, root, root+".tar.gz", j.epoch)
}

// levelModes makes what an installer left readable for everyone, whatever umask
// it ran under.
func levelModes(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if d.IsDir() || st.Mode()&0o111 != 0 {
			mode = 0o755
		}
		return os.Chmod(path, mode)
	})
}
